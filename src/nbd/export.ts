import type { ServedDevice } from "../device/served-device.ts";
import { MAX_PAYLOAD, TransmissionFlag } from "./protocol.ts";

/** What an export tells clients of sizes (NBD_INFO_BLOCK_SIZE), bytes. */
export interface BlockSizes {
  /** Requests of clients that asked are refused where they are not aligned to this. A power of two, at most 64 KiB. */
  minimum: number;
  /** What requests are best aligned to. A power of two, at least 512. */
  preferred: number;
  /** Most payload of one request; a multiple of `minimum`, at least 1 MiB, at most 32 MiB. */
  maximum: number;
}

/** A device under the name that clients know it by. */
export interface NbdExport {
  /** Up to 4096 bytes of UTF-8; may be empty. */
  readonly name: string;
  /** For people. */
  readonly description?: string;
  readonly device: ServedDevice;
  /** Whether clients may only read; a device that is read-only is never more. */
  readonly readOnly: boolean;
  /** Default: any alignment, best that of the device, up to 32 MiB. */
  readonly blockSizes?: BlockSizes;
}

/** The sizes of an export, its own or the usual ones. */
export function blockSizesOf({ blockSizes, device }: NbdExport): BlockSizes {
  if (blockSizes !== undefined) return blockSizes;
  return { minimum: 1, preferred: Math.min(Math.max(device.blockSize, 4096), MAX_PAYLOAD), maximum: MAX_PAYLOAD };
}

/** Whether clients may not change the export. */
export function isReadOnly({ readOnly, device }: NbdExport): boolean {
  return readOnly || device.readOnly;
}

/**
 * What an export can do. Several connections are always possible: all go to one device, so what one has written every
 * other reads, and a flush on one covers what was answered on any.
 */
export function transmissionFlags(served: NbdExport, { structured }: { structured: boolean }): number {
  const { hasFlags, readOnly, sendFlush, sendFua, sendTrim, sendWriteZeroes, sendDf } = TransmissionFlag;
  const { canMultiConn, sendCache, sendFastZero } = TransmissionFlag;
  let flags = hasFlags + sendFlush + sendFua + canMultiConn + sendCache;
  flags += isReadOnly(served) ? readOnly : sendTrim + sendWriteZeroes + sendFastZero;
  return structured ? flags + sendDf : flags;
}

/** The exports of a server. */
export class ExportTable {
  readonly #exports = new Map<string, NbdExport>();
  readonly #default: NbdExport | undefined;

  /**
   * @param exports in the order that clients see them in
   * @param defaultName which of them a client gets that names none; default the only one
   * @throws {TypeError} where two have one name, or the default is not among them
   */
  constructor(exports: Iterable<NbdExport>, defaultName?: string) {
    for (const served of exports) {
      if (this.#exports.has(served.name)) throw new TypeError(`two exports are named "${served.name}"`);
      checkSizes(blockSizesOf(served));
      this.#exports.set(served.name, served);
    }
    if (defaultName !== undefined && !this.#exports.has(defaultName)) {
      throw new TypeError(`there is no export "${defaultName}" to be the default`);
    }
    const [only] = this.#exports.size === 1 ? this.#exports.keys() : [];
    const name = defaultName ?? only;
    this.#default = this.#exports.get("") ?? (name === undefined ? undefined : this.#exports.get(name));
  }

  /** The export that a client means; the empty name is that of the default. */
  find(name: string): NbdExport | undefined {
    return name === "" ? this.#default : this.#exports.get(name);
  }

  [Symbol.iterator](): IterableIterator<NbdExport> {
    return this.#exports.values();
  }
}

function checkSizes({ minimum, preferred, maximum }: BlockSizes): void {
  const isPowerOfTwo = (size: number): boolean => Number.isInteger(Math.log2(size));
  const good =
    isPowerOfTwo(minimum) &&
    minimum <= 65536 &&
    isPowerOfTwo(preferred) &&
    preferred >= Math.max(512, minimum) &&
    maximum % minimum === 0 &&
    maximum >= Math.max(preferred, 2 ** 20) &&
    maximum <= MAX_PAYLOAD;
  if (!good) throw new RangeError(`block sizes ${minimum}, ${preferred}, ${maximum} are not what NBD allows`);
}
