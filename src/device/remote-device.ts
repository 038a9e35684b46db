/**
 * What a device at the other end of a network, or of another process, is beyond a BlockDevice: each request costs a round
 * trip, no thread of the pool waits for it, and it may go away and come back.
 */
import type { BlockDevice } from "./block-device.ts";

/** Fills `buffer` from `offset`, through one connection. @throws {DeviceError} where that place cannot be read */
export type Probe = (offset: number, buffer: Uint8Array) => Promise<void>;

/** See `RemoteDevice.verifyBy`. */
export type ConnectionCheck = (probe: Probe) => Promise<string | undefined>;

/** What tells it from another one, or from what it was before; each is there only where the protocol tells it. */
export interface RemoteIdentity {
  /** The protocol: `nbd`, `http`, `s3`. */
  readonly kind: string;
  /** Bytes. */
  readonly size: number;
  /** A strong entity tag, as it was sent. */
  readonly etag?: string;
  /** As it was sent. */
  readonly lastModified?: string;
}

/** A device that is not of this machine, or not of this process. */
export interface RemoteDevice extends BlockDevice {
  readonly identity: RemoteIdentity;
  /**
   * How often the connection was lost and made anew: for protocols without entity tags, what stands behind it may be
   * another thing from then on, and who cares compares samples.
   */
  readonly incarnation: number;
  /**
   * How it has changed since it was opened, as far as its own answers have told: the end of a sentence about it; undefined
   * as long as it has not. Asks nobody.
   */
  readonly changed: string | undefined;
  /**
   * How often something that was written may have been lost, as a flush tells once (`LostWritesError`). Counted before anything
   * is read that may be older than it should be. Undefined for what is never written to.
   */
  readonly losses?: number;
  /** Whether there is no connection at this moment. Undefined for what is never written to. */
  readonly isAway?: boolean;
  /**
   * Whether a change that was lost in a range may still be carried out, over what is written there meanwhile: undefined where
   * not; else it resolves when that may be over, and it is worth another look. Undefined for what is never written to.
   */
  strayIn?(offset: number, length: number): Promise<void> | undefined;
  /** Whether `flush()` makes anything durable; where not, it only waits. Undefined for what is never written to. */
  readonly canFlush?: boolean;
  /**
   * From now on each connection that is made after one was lost is looked at before anything is read from it or written to it:
   * `check` is given a way to read through that connection alone, and resolves to how what it finds differs from what was there
   * before, as the end of a sentence; then the device has `changed`, and every request fails. Where it throws, the connection is
   * none. Undefined where reads cannot be told apart by connections.
   */
  verifyBy?(check: ConnectionCheck): void;
  /** Most bytes that are best asked for by one request. */
  readonly mostAtOnce: number;
  /** Most requests of that length that are under way at once; others wait for their turn. Undefined where there is no bound to speak of. */
  readonly requestsAtOnce?: number;
}

/** What whoever opens a remote device may want to say and hear. */
export interface RemoteOptions {
  /** Ends the opening. */
  signal?: AbortSignal | undefined;
  /** Told when the connection is lost and when it is there again; sentences, without credentials. */
  onNote?: ((line: string) => void) | undefined;
  /** Told what only those who look for a fault want to hear: the words of a program that was started, which files it reads. */
  onDetail?: ((line: string) => void) | undefined;
  /** How long one request may take before its connection counts as lost, ms. */
  requestTimeoutMs?: number | undefined;
  /** How long a device that is gone is called again before requests fail, ms. */
  reconnectTimeoutMs?: number | undefined;
}
