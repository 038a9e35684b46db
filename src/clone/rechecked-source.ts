/**
 * A remote source that tells neither what its replies are from nor through which connection they came: an HTTP server without
 * entity tags. What was read is used only where no connection was made anew meanwhile, or after samples were compared:
 *
 *     read ──► as many connections as were verified? ── yes ──► used
 *       ▲                       └── no ──► samples are the same? ── no ──► changed, for ever
 *       └──────────────────────────────────────── yes
 *
 * What came back while it was another thing for a moment would pass if it were used then; so it is read again.
 */
import { ChangedError, DeviceError } from "../base/errors.ts";
import type { Extent } from "../device/block-device.ts";
import { FilterDevice } from "../device/filters/filter-device.ts";
import type { ConnectionCheck, RemoteDevice, RemoteIdentity } from "../device/remote-device.ts";

/** How often it is read again, or compared again, because a connection was lost meanwhile. */
const MOST_ATTEMPTS = 10;

/** The filter; what it is asked before samples are compared waits for that. */
export class RecheckedSource extends FilterDevice implements RemoteDevice {
  readonly #device: RemoteDevice;
  readonly #differenceOf: ConnectionCheck;
  /** The incarnation that is known to be the right thing. */
  #verified: number;
  #verifying: Promise<void> | undefined;
  #difference: string | undefined;

  /** `device` is the right thing now. `differenceOf` compares samples. */
  constructor(device: RemoteDevice, differenceOf: ConnectionCheck) {
    super(device);
    this.#device = device;
    this.#differenceOf = differenceOf;
    this.#verified = device.incarnation;
  }

  get identity(): RemoteIdentity {
    return this.#device.identity;
  }

  get incarnation(): number {
    return this.#device.incarnation;
  }

  get changed(): string | undefined {
    return this.#device.changed ?? this.#difference;
  }

  get mostAtOnce(): number {
    return this.#device.mostAtOnce;
  }

  override read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#ask(() => super.read(offset, buffer));
  }

  override extents(offset: number, length: number): Promise<Extent[]> {
    return this.#ask(() => super.extents(offset, length));
  }

  /** It is not asked at once: nobody would know what has answered. */
  override tryRead(): boolean {
    return false;
  }

  async #ask<T>(question: () => Promise<T>): Promise<T> {
    for (let attempt = 1; attempt <= MOST_ATTEMPTS; attempt++) {
      await this.#verify();
      const verified = this.#verified;
      const answer = await question();
      if (this.#device.incarnation === verified) return answer;
    }
    throw this.#unsteady();
  }

  /** Resolves when what there is now is known to be the right thing; all who ask meanwhile share it. */
  async #verify(): Promise<void> {
    if (this.#difference === undefined && this.#device.incarnation === this.#verified) return;
    this.#verifying ??= this.#compare().finally(() => {
      this.#verifying = undefined;
    });
    await this.#verifying;
  }

  async #compare(): Promise<void> {
    for (let attempt = 1; attempt <= MOST_ATTEMPTS; attempt++) {
      const { incarnation } = this.#device;
      this.#difference ??= await this.#differenceOf((offset, buffer) => super.read(offset, buffer));
      const difference = this.#difference;
      if (difference !== undefined) {
        throw new ChangedError(`Cannot read from "${this.name}": ${difference}`, { difference });
      }
      if (incarnation !== this.#device.incarnation) continue; // some samples may be of another thing than others
      this.#verified = incarnation;
      return;
    }
    throw this.#unsteady();
  }

  #unsteady(): DeviceError {
    const message = `Cannot read from "${this.name}": its connection is lost again and again`;
    return new DeviceError(message, { errno: "ECONNRESET" });
  }
}
