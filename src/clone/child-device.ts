/** What a program of its own serves, as a device: reads go to its NBD server, and its end takes the program with it. */
import { type Clock, systemClock } from "../base/clock.ts";
import { ChangedError, type CloneError, DeviceError } from "../base/errors.ts";
import type { Extent } from "../device/block-device.ts";
import type { ChildServer } from "../device/child-server.ts";
import type { FileDevice } from "../device/file-device.ts";
import { FilterDevice } from "../device/filters/filter-device.ts";
import type { ConnectionCheck, RemoteDevice, RemoteIdentity } from "../device/remote-device.ts";
import { openFilesOf } from "./opened-files.ts";
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
  /** Whether what it reads of this machine is what it has open: of qemu-nbd. What a command has open may be anything. */
  isQemu?: boolean;
  /** Throws a ChangedError where they are not what they were. */
  check?: (() => Promise<void>) | undefined;
  /**
   * Asked about each program before anything that it tells is believed: throws a ChangedError where it has something else open than
   * it was to open, and a DeviceError where that cannot be told.
   */
  checkOpened?: ((pid: number | undefined, options: { isFirst: boolean }) => Promise<void>) | undefined;
}

/** A device behind a program, read-only. */
export class ChildDevice extends FilterDevice implements RemoteDevice {
  readonly #client: RemoteDevice;
  readonly #server: ChildServer;
  readonly #served: ServedSource | undefined;
  readonly #owned: ChildDevice | undefined;
  readonly #check: (() => Promise<void>) | undefined;
  readonly #checkOpened: ChildDeviceParts["checkOpened"];
  /** Which program was found to have nothing else open, as `ChildServer.generation` counts. */
  #checked = 0;
  #exchanged: ChangedError | undefined;
  readonly identity: RemoteIdentity;
  readonly #renews: boolean;
  readonly #isQemu: boolean;
  readonly #clock: Clock;
  #renewal: { of: number; at: number; done: Promise<void> } | undefined;

  private constructor(parts: ChildDeviceParts) {
    const { client, server, served, owned, tag, check, checkOpened, renews = false, clock = systemClock } = parts;
    super(client);
    this.#isQemu = parts.isQemu ?? false;
    this.#renews = renews;
    this.#clock = clock;
    this.#client = client;
    this.#server = server;
    this.#served = served;
    this.#owned = owned;
    this.#check = check;
    this.#checkOpened = checkOpened;
    this.identity = tag === undefined ? client.identity : { ...client.identity, etag: tag };
  }

  /** A device of a program that is connected to. @throws {DeviceError} where it has something else open than it should */
  static async open(parts: ChildDeviceParts): Promise<ChildDevice> {
    const device = new ChildDevice(parts);
    try {
      await device.#believe({ isFirst: true });
      return device;
    } catch (error) {
      await parts.client[Symbol.asyncDispose]();
      await parts.server[Symbol.asyncDispose]();
      throw error;
    }
  }

  get incarnation(): number {
    return this.#client.incarnation;
  }

  get changed(): string | undefined {
    if (this.#exchanged !== undefined) return this.#exchanged.difference;
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

  /**
   * The local files and block devices that it is read from, as far as that can be told: those that the program has open where that
   * is qemu-nbd, backing files included; none where it is a command. They are the caller's.
   * @throws {DeviceError} where the program has ended, or they cannot be opened
   */
  async openFiles(): Promise<FileDevice[]> {
    if (this.#owned !== undefined) return await this.#owned.openFiles(); // the program itself reads from us
    return this.#isQemu ? await openFilesOf(this.#server.pid, this.name) : [];
  }

  verifyBy(check: ConnectionCheck): void {
    this.#client.verifyBy?.(check);
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
    if (this.#exchanged !== undefined) throw this.#exchanged;
    if (this.#server.failure instanceof ChangedError) throw this.#server.failure;
    const before = this.#served?.failures.number;
    const { generation } = this.#server;
    try {
      return await this.#believed(question);
    } catch (error) {
      if (!(await this.#isRenewed(error, generation))) throw this.#reasonFor(error, before);
    }
    try {
      return await this.#believed(question);
    } catch (error) {
      throw this.#reasonFor(error, before);
    }
  }

  /** An answer of a program that has nothing else open than what it is to read. */
  async #believed<T>(question: () => Promise<T>): Promise<T> {
    let answer: { of: T } | undefined;
    let failure: unknown;
    try {
      answer = { of: await question() };
    } catch (error) {
      failure = error;
    }
    if (this.#checked !== this.#server.generation) {
      await this.#believe({ isFirst: false }).catch((error: unknown) => {
        if (answer !== undefined || error instanceof ChangedError) throw error;
      });
    }
    if (answer === undefined) throw failure;
    return answer.of;
  }

  async #believe(options: { isFirst: boolean }): Promise<void> {
    const { generation, pid } = this.#server;
    try {
      await this.#checkOpened?.(pid, options);
      this.#checked = generation;
    } catch (error) {
      if (error instanceof ChangedError) this.#exchanged ??= error;
      throw error;
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
