import type { BlockDevice, ImmediateIo, ZeroOptions } from "./block-device.ts";

/** How a client asks for zeros (NBD_CMD_WRITE_ZEROES). */
export interface ServedZeroOptions extends ZeroOptions {
  /** Fail with a DeviceError ENOTSUP, nothing changed, rather than be slower than a discard (NBD_CMD_FLAG_FAST_ZERO). */
  fast?: boolean;
}

/** A run of bytes and its status in one metadata context: the flags are the context's own. */
export interface StatusRun {
  /** Bytes, more than 0. */
  length: number;
  flags: number;
}

/** A metadata context besides `base:allocation` (NBD "Metadata querying"). */
export interface StatusContext {
  /** As `x-clone:hydrated`. */
  readonly name: string;
  /** Runs from `offset` on, ascending, without gaps, no two neighbours alike, clipped to `length`; at most `most` of them. */
  runs(offset: number, length: number, most: number): StatusRun[];
}

/**
 * A block device as a server shows it to clients: many requests at once, some of them answered without waiting. A
 * request that is out of range or not allowed is the server's to refuse, not the device's.
 */
export interface ServedDevice extends Omit<BlockDevice, keyof ImmediateIo>, ImmediateIo {
  zero(offset: number, length: number, options?: ServedZeroOptions): Promise<void>;
  discard(offset: number, length: number, options?: { fua?: boolean }): Promise<void>;
  /** Says that the range will be read soon (NBD_CMD_CACHE). Returns at once, and promises nothing. */
  hint(offset: number, length: number): void;
  /** The contexts that it has besides `base:allocation`. */
  readonly contexts: readonly StatusContext[];
}
