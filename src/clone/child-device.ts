/** What a program of its own serves, as a device: reads go to its NBD server, and its end takes the program with it. */
import { type Clock, systemClock } from "../base/clock.ts";
import { ChangedError, type CloneError, DeviceError } from "../base/errors.ts";
import type { Extent } from "../device/block-device.ts";
import type { ChildServer } from "../device/child-server.ts";
import { FilterDevice } from "../device/filters/filter-device.ts";
import type { RemoteDevice, RemoteIdentity } from "../device/remote-device.ts";
import type { ServedSource } from "./served-source.ts";

/** No program is ended for an error within so much of the one before, ms. */
const RENEWAL_PAUSE_MS = 10_000;

/** What it consists of; all of it is the device's, which disposes of it. */
export interface ChildDeviceParts {
  client: RemoteDevice;
  server: ChildServer;
  /** What the program itself reads from us. */
  served?: ServedSource | undefined;
  /** And from what we read that. */
  owned?: ChildDevice | undefined;
  /** Tells the files that it is read from, besides the one that its user has named. */
  tag?: string | undefined;
  /**
   * Whether errors may be of a program that has lost its connection for good: then another one is started, and asked again. qemu's
   * driver for ssh is such a one; its others connect again by themselves.
   */
  renews?: boolean;
  clock?: Clock;
  /** Throws a ChangedError where they are not what they were. */
  check?: (() => Promise<void>) | undefined;
}

/** A device behind a program, read-only. */
export class ChildDevice extends FilterDevice implements RemoteDevice {
  readonly #client: RemoteDevice;
  readonly #server: ChildServer;
  readonly #served: ServedSource | undefined;
  readonly #owned: ChildDevice | undefined;
  readonly #check: (() => Promise<void>) | undefined;
  readonly identity: RemoteIdentity;
  readonly #renews: boolean;
  readonly #clock: Clock;
  #renewal: { of: number; at: number; done: Promise<void> } | undefined;

  constructor(parts: ChildDeviceParts) {
    const { client, server, served, owned, tag, check, renews = false, clock = systemClock } = parts;
    super(client);
    this.#renews = renews;
    this.#clock = clock;
    this.#client = client;
    this.#server = server;
    this.#served = served;
    this.#owned = owned;
    this.#check = check;
    this.identity = tag === undefined ? client.identity : { ...client.identity, etag: tag };
  }

  get incarnation(): number {
    return this.#client.incarnation;
  }

  get changed(): string | undefined {
    const { failure } = this.#server;
    if (failure instanceof ChangedError) return failure.difference;
    return this.#owned?.changed ?? this.#client.changed;
  }

  /**
   * How what it is read from has changed since it was opened, as the end of a sentence about it. As `changed`, but it asks: for the
   * files of a chain, backing files included. @throws {DeviceError} where they cannot be looked at
   */
  async change(): Promise<string | undefined> {
    try {
      await this.#check?.();
    } catch (error) {
      if (error instanceof ChangedError) return error.difference;
      throw error;
    }
    return this.changed;
  }

  get mostAtOnce(): number {
    return this.#client.mostAtOnce;
  }

  override read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#ask(() => super.read(offset, buffer));
  }

  override extents(offset: number, length: number): Promise<Extent[]> {
    return this.#ask(() => super.extents(offset, length));
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#server[Symbol.asyncDispose]();
    await this.#served?.[Symbol.asyncDispose]();
    await this.#owned?.[Symbol.asyncDispose]();
  }

  /** Asks the program; where it cannot answer, the error tells what is known of why. */
  async #ask<T>(question: () => Promise<T>): Promise<T> {
    this.#server.want();
    if (this.#server.failure instanceof ChangedError) throw this.#server.failure;
    const before = this.#served?.failures.number;
    const { generation } = this.#server;
    try {
      return await question();
    } catch (error) {
      if (!(await this.#isRenewed(error, generation))) throw this.#reasonFor(error, before);
    }
    try {
      return await question();
    } catch (error) {
      throw this.#reasonFor(error, before);
    }
  }

  /** Whether the program that has answered with an error is gone, so that another one may be asked. */
  async #isRenewed(error: unknown, generation: number): Promise<boolean> {
    if (!this.#renews || !(error instanceof DeviceError) || error.away || error instanceof ChangedError) return false;
    const now = this.#clock.now();
    if (this.#server.generation === generation && this.#renewal?.of !== generation) {
      if (this.#renewal !== undefined && now - this.#renewal.at < RENEWAL_PAUSE_MS) return false; // not for want of a connection
      this.#renewal = { of: generation, at: now, done: this.#server.renew() };
    }
    await this.#renewal?.done;
    return true;
  }

  #reasonFor(error: unknown, failuresBefore: number | undefined): unknown {
    if (!(error instanceof DeviceError) || error instanceof ChangedError) return error;
    const { failure } = this.#server;
    if (failure instanceof ChangedError) return failure;
    const beneath = this.#served?.failures;
    if (beneath?.error !== undefined && beneath.number !== failuresBefore) return beneath.error;
    return failure === undefined ? error : withCause(error, failure);
  }
}

/** An error of the client, which only knows that nobody answered. */
function withCause(error: DeviceError, failure: CloneError): DeviceError {
  const { errno, offset, length } = error;
  const where = { ...(offset === undefined ? {} : { offset }), ...(length === undefined ? {} : { length }) };
  const hint = failure.hint === undefined ? {} : { hint: failure.hint };
  return new DeviceError(failure.message, { errno, away: true, ...where, ...hint, cause: error });
}
