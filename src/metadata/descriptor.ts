/**
 * The descriptor: who the source and destination are and what else dm-clone's own format has no room for. It stands
 * behind the last block that the space map manages, where the kernel never looks (format section 11), and is optional:
 * metadata without one works, told its devices on the command line.
 *
 *     block 0 … nr_blocks - 1 | slot 0, 64 KiB | slot 1, 64 KiB | whatever the device has beyond
 *
 * It is written to the slots in turn, each write flushed: while one is being overwritten the other, older one is whole,
 * so a torn write costs at most the change that was being made. It is no part of a metadata transaction.
 */
import { CloneError, DeviceError, MetadataError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { type Descriptor, decodeDescriptor, encodeDescriptor } from "./descriptor-json.ts";
import {
  beginsSlot,
  type DescriptorPlace,
  decodeSlot,
  encodeSlot,
  MINOR_VERSION,
  SLOT_BYTES,
  slotExtent,
} from "./descriptor-slot.ts";

export {
  type Descriptor,
  type DestinationIdentity,
  type DeviceIdentity,
  descriptorFromJson,
  descriptorToJson,
  type FinalizeRecord,
  type Fingerprint,
  MAX_URI_BYTES,
  type SettledState,
  type SourceIdentity,
  type TunedSettings,
  type UnreadableRegions,
} from "./descriptor-json.ts";
export type { DescriptorPlace } from "./descriptor-slot.ts";

const SLOT_COUNT = 2;
const BLOCK_SIZE = 4096;
const SLOT_HEAD_BYTES = 8;
/** Of a slot that cannot be read at once; a disk gives up no less. */
const SECTOR_BYTES = 512;
/** Bytes that the descriptor takes behind the last managed block. */
export const DESCRIPTOR_BYTES = SLOT_COUNT * SLOT_BYTES;

const LOST_HINT =
  "What the clone is made of may be recorded there. Where it stays so, `clone repair` makes new metadata of the rest.";

/** The newest valid slot. */
interface Current {
  slot: number;
  sequence: number;
  minorVersion: number;
  descriptor: Descriptor;
}

/** Reads and writes the descriptor of one metadata device, which stays the caller's to close. */
export class DescriptorStore {
  readonly #device: BlockDevice;
  readonly #place: DescriptorPlace;
  #current: Current | null = null;
  #newer: string | null = null;
  /** Why a slot could not be read, and the sequence number that it may have. */
  #lost: { error: DeviceError | MetadataError; sequence: number } | null = null;
  #failure: unknown;
  #queue: Promise<unknown> = Promise.resolve();
  readonly #warnings: string[] = [];

  private constructor(device: BlockDevice, place: DescriptorPlace) {
    this.#device = device;
    this.#place = place;
  }

  /**
   * Looks for a descriptor. None, a damaged one and one that belongs to another clone are no errors: `read()` is then
   * null, and `warnings` says what stands there instead. Nor is a slot that cannot be read: see `unreadable`.
   */
  static async open(device: BlockDevice, place: DescriptorPlace): Promise<DescriptorStore> {
    const store = new DescriptorStore(device, place);
    for (let slot = 0; slot < SLOT_COUNT && store.hasRoom; slot++) await store.#readSlot(slot);
    if (!store.hasRoom) await store.#warnWhereCut();
    return store;
  }

  /**
   * Makes the place blank, durably, and returns its empty store. To be called when metadata is created: the remains of
   * an earlier clone of the same geometry would otherwise be taken for its descriptor.
   *
   * @throws {RangeError} if the device has no room
   * @throws {DeviceError} on an I/O error
   */
  static async format(device: BlockDevice, place: DescriptorPlace): Promise<DescriptorStore> {
    const store = new DescriptorStore(device, place);
    store.#requireRoom();
    await device.write(store.#offsetOf(0), new Uint8Array(DESCRIPTOR_BYTES));
    await device.flush();
    return store;
  }

  /** Whether the device is large enough. Metadata made by the kernel fills its device and leaves no room. */
  get hasRoom(): boolean {
    return this.#offsetOf(0) + DESCRIPTOR_BYTES <= this.#device.size;
  }

  /** What was found on opening and is not as it should be: sentences for people, none in the normal case. */
  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /**
   * Why a slot could not be read that may be the newer one, or is cut off. `read()` may then be older than the descriptor, or null where there is
   * one: good enough to be shown, but not to be acted on. Unlike a torn slot, this one may have been written whole, and acted on.
   */
  get unreadable(): DeviceError | MetadataError | null {
    if (this.#lost === null || this.#lost.sequence < (this.#current?.sequence ?? 0)) return null;
    return this.#lost.error;
  }

  /** The newest valid descriptor, as found on opening or last written. Not to be modified. */
  read(): Descriptor | null {
    return this.#current?.descriptor ?? null;
  }

  /**
   * Writes a descriptor to the slot that does not hold the present one; durable on return. Unreadable regions that do
   * not fit are merged and marked inexact: `read()` has them as written. Fields of a newer minor version that
   * `descriptor` lacks at the top level are kept. Calls at the same time are made one after the other.
   *
   * @throws {RangeError} for a descriptor that breaks the documented limits, or if the device has no room
   * @throws {MetadataError} if a newer program wrote what would be overwritten, or left no room
   * @throws {DeviceError} on an I/O error; no further write is then accepted, the one before is still there. Also where a
   *   slot could not be read: were it readable again, it might be the one with the higher number
   */
  write(descriptor: Descriptor): Promise<void> {
    const turn = this.#queue.then(() => this.#writeNow(descriptor));
    this.#queue = Promise.allSettled([turn]);
    return turn;
  }

  async #writeNow(descriptor: Descriptor): Promise<void> {
    this.#requireRoom();
    if (this.unreadable !== null) throw this.unreadable;
    const { name } = this.#device;
    if (this.#newer !== null) throw new MetadataError(`Cannot write the descriptor of "${name}": it ${this.#newer}`);
    if (this.#failure !== undefined) {
      const message = `Cannot write the descriptor of "${name}": an earlier write of it failed`;
      throw new CloneError("failed", message, { cause: this.#failure });
    }
    const { geometry } = this.#place;
    const current = this.#current;
    const sequence = (current?.sequence ?? 0) + 1;
    const minorVersion = Math.max(current?.minorVersion ?? 0, MINOR_VERSION);
    const payload = encodeDescriptor({ ...current?.descriptor, ...descriptor }, geometry);
    const slot = current === null ? 0 : (current.slot + 1) % SLOT_COUNT;
    try {
      await this.#device.write(this.#offsetOf(slot), encodeSlot(this.#place, { sequence, minorVersion, payload }));
      await this.#device.flush();
    } catch (error) {
      this.#failure = error;
      throw error;
    }
    this.#current = { slot, sequence, minorVersion, descriptor: decodeDescriptor(payload, geometry) };
  }

  async #readSlot(slot: number): Promise<void> {
    const bytes = new Uint8Array(SLOT_BYTES);
    try {
      await this.#device.read(this.#offsetOf(slot), bytes);
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      const known = await this.#readSectors(slot, bytes);
      const { length, sequence } = known === 0 ? { length: SLOT_BYTES, sequence: Infinity } : slotExtent(bytes);
      if (known < length) {
        this.#warnings.push(`slot ${slot} cannot be read: ${error.message}`);
        if (sequence >= (this.#lost?.sequence ?? 0)) this.#lost = { error: withHint(error), sequence };
        return;
      }
    }
    const found = decodeSlot(this.#place, bytes);
    if (found.kind === "empty") return;
    if (found.kind !== "valid") {
      this.#warnings.push(`slot ${slot} ${found.reason}`);
      if (found.kind === "newer") this.#newer = found.reason;
      return;
    }
    const { sequence, minorVersion, payload } = found;
    try {
      const descriptor = decodeDescriptor(payload, this.#place.geometry);
      if (sequence > (this.#current?.sequence ?? 0)) this.#current = { slot, sequence, minorVersion, descriptor };
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#warnings.push(`slot ${slot} ${error.message}`);
    }
  }

  /** Reads a slot from its begin on as far as that goes. @returns bytes */
  async #readSectors(slot: number, bytes: Uint8Array): Promise<number> {
    for (let known = 0; known < bytes.length; known += SECTOR_BYTES) {
      try {
        await this.#device.read(this.#offsetOf(slot) + known, bytes.subarray(known, known + SECTOR_BYTES));
      } catch (error) {
        if (!(error instanceof DeviceError)) throw error;
        bytes.fill(0, known);
        return known;
      }
    }
    return bytes.length;
  }

  /**
   * A device that ends within the place had a descriptor only where a slot begins: what the kernel made may have any tail. What
   * is left of it is not believed, since the slot that is gone may have been the newer one, and have said that clients wrote.
   */
  async #warnWhereCut(): Promise<void> {
    const head = new Uint8Array(SLOT_HEAD_BYTES);
    if (this.#offsetOf(0) + head.length > this.#device.size) return;
    try {
      await this.#device.read(this.#offsetOf(0), head);
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      this.#warnings.push(`slot 0 cannot be read: ${error.message}`);
      this.#lost = { error: withHint(error), sequence: Infinity };
      return;
    }
    if (!beginsSlot(head)) return;
    const there = this.#device.size - this.#offsetOf(0);
    const what = `it is cut off: ${there} of its ${DESCRIPTOR_BYTES} bytes are there`;
    this.#warnings.push(what);
    const error = new MetadataError(`Cannot use the descriptor of "${this.#device.name}": ${what}`, {
      hint: LOST_HINT,
    });
    this.#lost = { error, sequence: Infinity };
  }

  #offsetOf(slot: number): number {
    return this.#place.blockCount * BLOCK_SIZE + slot * SLOT_BYTES;
  }

  #requireRoom(): void {
    if (this.hasRoom) return;
    throw new RangeError(`"${this.#device.name}" has no room for a descriptor behind its last block`);
  }
}

/** The error for those who need the descriptor. */
function withHint(error: DeviceError): DeviceError {
  const { message, errno, offset = 0, length = 0, away } = error;
  return new DeviceError(message, {
    cause: error,
    errno,
    offset,
    length,
    away,
    hint: LOST_HINT,
  });
}
