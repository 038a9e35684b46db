/**
 * Moves one run of bytes from the source to the destination by the cheapest means that is right:
 *
 *     share      reflink, where both lie on one file system that can
 *     skip       a hole or zeros in the source, where the destination itself reads as zeros at this moment
 *     zero       the same, where it does not: an earlier life of the destination must not show through
 *     copy       everything else, in pieces, several in flight
 *
 * "At this moment" matters: that a file was created empty proves nothing after a restart, because an unflushed write may
 * have reached it. So the destination is asked each time, never remembered.
 */
import { setMaxListeners } from "node:events";
import { DeviceError } from "../base/errors.ts";
import type { ByteRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { BufferPool, SMALLEST_BUFFER } from "./buffer-pool.ts";
import type { ExtentCache } from "./extent-cache.ts";
import { ReadsInFlight } from "./reads-in-flight.ts";
import { ZERO_LENGTH, zeroWhereNeeded } from "./show-zeros.ts";
import type { Throttle } from "./throttle.ts";

/** Bytes moved, by how. */
export interface CopyCounts {
  /** Read from the source and written to the destination. */
  copied: number;
  /** Shared with the source. */
  reflinked: number;
  /** Zeros in the source that the destination had to be given. */
  zeroed: number;
  /** Zeros in the source that the destination showed already. */
  skipped: number;
}

/** The source could not be read; the region it was read for stays unhydrated. `cause` is the device's error. */
export class SourceReadError extends DeviceError {}

/** A range of the source that is known to be zeros, or not known to be. */
type ZeroOrData = ByteRange & { zero: boolean };

/** What copies may do at this moment; read anew for each piece. Bytes. */
export interface CopyAllowance {
  /** Most bytes per read and write, at least 4096. */
  readonly pieceLength: number;
  /** Most pieces of that length in flight at once, at least 1; of smaller ones as many bytes. */
  readonly depth: number;
  /** Most bytes shared or zeroed by one call, which may keep the file to itself meanwhile. */
  readonly shareLength: number;
}

/** Bounds the bytes that the source is asked for at once. */
export interface ReadWindow {
  /** Resolves when so many more bytes may be asked for; first come, first served. */
  enter(bytes: number): Promise<void>;
  /** They have come, or will not. */
  leave(bytes: number): void;
}

/** What ends a copy, and what ends its waiting: the same, or more. */
interface Stop {
  signal: AbortSignal;
  hurry: AbortSignal;
  onProgress: () => void;
  onLanded: (range: ByteRange) => void;
}

/** What a copier works on. */
export interface RegionCopierParts {
  source: BlockDevice;
  destination: BlockDevice;
  /** The source's holes. */
  extents: ExtentCache;
  throttle: Throttle;
  /** Bytes per read and write, a multiple of 64 KiB. */
  pieceLength: number;
  /** Pieces of that length in flight at once; of smaller ones as many bytes. */
  depth: number;
  /** What holds of this, and of long shares, at any moment, where that changes. */
  allowance?: CopyAllowance;
  /** Of the pieces in flight, what is on its way from the source; the rest is being written. Default: no bound of its own. */
  window?: ReadWindow;
  /** The reads of all who read this source, so that none asks for what another has. Default: its own alone. */
  reads?: ReadsInFlight;
  /** Zeros are looked for in units of this many bytes; a region or less, so that no zero region is written. */
  zeroUnit: number;
  /** Makes a buffer fit for direct I/O. */
  allocate: (byteLength: number) => Uint8Array;
  /** Read everything back and compare: what was written, what was zeroed, and what was skipped. */
  verify: boolean;
  /** Once aborted nothing more is written: the clone has failed. */
  halt: AbortSignal;
}

/** The most bytes shared by one call unless told otherwise, so that a stop is not kept waiting. */
const SHARE_LENGTH = 256 * 2 ** 20;

/** Copies byte ranges; many calls may run at once, the pieces in flight are bounded together. */
export class RegionCopier {
  readonly #parts: RegionCopierParts;
  readonly #reads: ReadsInFlight;
  readonly #buffers: BufferPool;
  /** Apart from the others: a piece holds one of each, and with one pool for both all could wait for a second. */
  readonly #readBack: BufferPool;
  readonly #zeros: Buffer;
  #reflinks: boolean;
  readonly counts: CopyCounts = { copied: 0, reflinked: 0, zeroed: 0, skipped: 0 };

  constructor(parts: RegionCopierParts) {
    this.#parts = parts;
    this.#reads = parts.reads ?? new ReadsInFlight();
    this.#reflinks = parts.destination.reflinkFrom !== undefined;
    const pool = () =>
      new BufferPool({
        capacity: () => this.#depth * Math.max(this.#pieceLength, SMALLEST_BUFFER),
        largest: parts.pieceLength,
        allocate: parts.allocate,
      });
    this.#buffers = pool();
    this.#readBack = pool();
    this.#zeros = Buffer.alloc(parts.zeroUnit);
  }

  /** Bytes that are best copied by one `copy()` as long as nobody says otherwise. */
  get preferredLength(): number {
    const shares = this.#reflinks && this.counts.reflinked > 0;
    return shares ? this.#shareLength : Math.min(this.#pieceLength, this.#parts.throttle.pieceLength);
  }

  get #pieceLength(): number {
    return Math.min(this.#parts.pieceLength, this.#parts.allowance?.pieceLength ?? Infinity);
  }

  get #depth(): number {
    return Math.min(this.#parts.depth, this.#parts.allowance?.depth ?? Infinity);
  }

  get #shareLength(): number {
    const most = Math.min(SHARE_LENGTH, this.#parts.allowance?.shareLength ?? Infinity);
    return Math.min(most, this.#parts.throttle.pieceLength);
  }

  /**
   * Makes the destination's range equal the source's; durable after the destination's next flush. Once `hurry` aborts it
   * does not wait for the rate any more; `onProgress` is called when a piece has got its turn, and when it has been read, shared or made zero;
   * `onLanded` when the destination has a part of the range.
   * @throws {SourceReadError} where the source cannot be read
   * @throws {DeviceError} where the destination fails
   * @throws the reason of `signal` or of the halt signal when either aborts between two pieces; the range is then unfinished
   */
  async copy(
    range: ByteRange,
    signal: AbortSignal,
    options: { hurry?: AbortSignal; onProgress?: () => void; onLanded?: (range: ByteRange) => void } = {},
  ): Promise<void> {
    const { hurry = signal, onProgress = () => {}, onLanded = () => {} } = options;
    setMaxListeners(0, hurry); // every piece listens while it waits for the rate: many are no leak
    const extents = await this.#sourceExtents(range);
    const stop = { signal, hurry, onProgress, onLanded };
    if (this.#reflinks && extents.some(({ zero }) => !zero) && (await this.#reflink(range, stop))) return;
    const pieces = this.#pieceTasks(extents, stop);
    const workers = Array.from({ length: this.#depth }, async () => {
      // The generator is shared: each worker takes the next piece, and leaving the loop by an error ends it for all.
      for (const piece of pieces) await piece();
    });
    // All must have ended before the caller hears of an error: nobody may write to a region that was given up.
    const failed = (await Promise.allSettled(workers)).find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  *#pieceTasks(extents: ZeroOrData[], stop: Stop): Generator<() => Promise<void>> {
    for (const { offset, length, zero } of extents) {
      if (zero) yield () => this.#zeroRange({ offset, length }, stop);
      else for (const piece of this.#pieces({ offset, length })) yield () => this.#copyPiece(piece, stop);
    }
  }

  async #sourceExtents(range: ByteRange): Promise<ZeroOrData[]> {
    try {
      return await this.#parts.extents.extents(range.offset, range.length);
    } catch (error) {
      throw asSourceError(error, range);
    }
  }

  /** Cuts a range into pieces that end on multiples of the piece length, so that neighbours stay aligned. */
  *#pieces({ offset, length }: ByteRange): Generator<ByteRange> {
    const end = offset + length;
    for (let position = offset; position < end; ) {
      const most = alignDown(Math.min(this.#pieceLength, this.#parts.throttle.pieceLength), 4096);
      const next = Math.min(end, position - (position % most) + most);
      yield { offset: position, length: next - position };
      position = next;
    }
  }

  async #reflink(range: ByteRange, stop: Stop): Promise<boolean> {
    const { source, destination, halt } = this.#parts;
    const end = range.offset + range.length;
    for (let offset = range.offset; offset < end; ) {
      const length = Math.min(end - offset, alignDown(this.#shareLength, 4096));
      const data = await this.#dataLength({ offset, length });
      await this.#pay(data, stop);
      halt.throwIfAborted();
      // Where it stops, what was shared so far is right, and is copied once more by the caller.
      const shared = await destination.reflinkFrom?.(source, offset, offset, length).catch(undecided);
      if (shared === undefined) return false;
      if (!shared) {
        this.#reflinks = false;
        return false;
      }
      stop.onProgress();
      this.counts.reflinked += data;
      this.counts.skipped += length - data;
      if (this.#parts.verify) for (const piece of this.#pieces({ offset, length })) await this.#verifyPiece(piece);
      offset += length;
    }
    return true;
  }

  /** Bytes of a range that are not known to be zeros: only these count against a rate or a limit. */
  async #dataLength(range: ByteRange): Promise<number> {
    let bytes = 0;
    for (const { length, zero } of await this.#sourceExtents(range)) if (!zero) bytes += length;
    return bytes;
  }

  async #copyPiece({ offset, length }: ByteRange, stop: Stop): Promise<void> {
    const buffer = await this.#payAndAcquire(length, stop);
    const data = asBuffer(buffer, length);
    await this.#parts.window?.enter(length);
    // Only now may others count on it: nobody who is in a hurry should have to wait for its turn.
    const fetch = this.#reads.fetch({ offset, length }, () => data);
    try {
      stop.onProgress();
      try {
        await fetch.run((from, bytes) => this.#readSource(from, bytes));
      } finally {
        this.#parts.window?.leave(length);
      }
      stop.onProgress();
      for (const run of this.#zeroRuns(data)) {
        if (run.zero) await this.#zeroRun({ offset: offset + run.start, length: run.end - run.start });
        else await this.#write(offset + run.start, data.subarray(run.start, run.end));
      }
      if (this.#parts.verify) await this.#compare(offset, data);
      stop.onLanded({ offset, length }); // in the turn in which it is found here no more
    } finally {
      fetch.release();
      this.#buffers.release(buffer);
    }
  }

  /**
   * Pays before it takes a place: a copy in a hurry would find all places held by those that wait for the rate. Who paid
   * nothing, when there was no limit, pays once there is one.
   * @throws the reason to stop, if there is one by then
   */
  async #payAndAcquire(bytes: number, stop: Stop): Promise<Uint8Array> {
    const { throttle } = this.#parts;
    for (;;) {
      const wasFree = throttle.bytesPerSecond === null;
      await this.#pay(bytes, stop);
      const buffer = await this.#buffers.acquire(Math.min(bytes, this.#parts.pieceLength));
      const owes = wasFree && throttle.bytesPerSecond !== null && !stop.hurry.aborted;
      if (!owes && !stop.signal.aborted) return buffer;
      this.#buffers.release(buffer);
      stop.signal.throwIfAborted();
    }
  }

  /** Waits until `bytes` may be moved. @throws the reason to stop, if there is one by then */
  async #pay(bytes: number, { signal, hurry }: Stop): Promise<void> {
    await this.#parts.throttle.take(bytes, hurry);
    signal.throwIfAborted();
  }

  /** Cuts `data` into maximal runs of zero and non-zero units. */
  *#zeroRuns(data: Buffer): Generator<{ start: number; end: number; zero: boolean }> {
    const unit = this.#zeros.length;
    let start = 0;
    let zero: boolean | undefined;
    for (let position = 0; position < data.length; position += unit) {
      const end = Math.min(position + unit, data.length);
      // Data mostly shows itself in the first byte, and saves the call.
      const unitZero = data[position] === 0 && data.compare(this.#zeros, 0, end - position, position, end) === 0;
      if (zero !== undefined && unitZero !== zero) {
        yield { start, end: position, zero };
        start = position;
      }
      zero = unitZero;
    }
    if (zero !== undefined) yield { start, end: data.length, zero };
  }

  async #readSource(offset: number, data: Uint8Array): Promise<void> {
    try {
      await this.#parts.source.read(offset, data);
    } catch (error) {
      throw asSourceError(error, { offset, length: data.length });
    }
  }

  async #write(offset: number, data: Uint8Array): Promise<void> {
    this.#parts.halt.throwIfAborted();
    await this.#parts.destination.write(offset, data);
    this.counts.copied += data.length;
  }

  /** Makes zeros of a range that was not read. */
  async #zeroRange({ offset, length }: ByteRange, stop: Stop): Promise<void> {
    await this.#makeZero({ offset, length }, async (position, most) => {
      // Zeros that the destination has to be given cost rate, time and a place in flight like data: not every device
      // zeroes without writing.
      const piece = alignDown(Math.min(ZERO_LENGTH, this.#shareLength), 4096);
      const part = Math.min(most, piece);
      const slot = await this.#payAndAcquire(part, stop);
      try {
        stop.onProgress();
        await this.#zero(position, part);
        stop.onProgress();
        return part;
      } finally {
        this.#buffers.release(slot);
      }
    });
    if (this.#parts.verify) await this.#verifyZeros({ offset, length });
    stop.onLanded({ offset, length });
  }

  /** Makes zeros of what was read and found to be zeros: that has been paid for, and is compared with its piece. */
  async #zeroRun(range: ByteRange): Promise<void> {
    await this.#makeZero(range, async (position, length) => {
      await this.#zero(position, length);
      return length;
    });
  }

  async #makeZero(range: ByteRange, zero: (position: number, most: number) => Promise<number>): Promise<void> {
    const shown = await zeroWhereNeeded(this.#parts.destination, range, zero);
    this.counts.skipped += shown; // only now: others have counted meanwhile
  }

  async #zero(offset: number, length: number): Promise<void> {
    this.#parts.halt.throwIfAborted();
    await this.#parts.destination.zero(offset, length);
    this.counts.zeroed += length;
  }

  async #verifyPiece({ offset, length }: ByteRange): Promise<void> {
    const buffer = await this.#buffers.acquire(length);
    try {
      const data = asBuffer(buffer, length);
      await this.#readSource(offset, data);
      await this.#compare(offset, data);
    } finally {
      this.#buffers.release(buffer);
    }
  }

  async #verifyZeros(range: ByteRange): Promise<void> {
    for (const { offset, length } of this.#pieces(range)) {
      const buffer = await this.#buffers.acquire(length);
      try {
        await this.#compare(offset, asBuffer(buffer, length).fill(0));
      } finally {
        this.#buffers.release(buffer);
      }
    }
  }

  /** Compares the destination with what it was given. */
  async #compare(offset: number, expected: Buffer): Promise<void> {
    const { destination } = this.#parts;
    const buffer = await this.#readBack.acquire(expected.length);
    try {
      const actual = asBuffer(buffer, expected.length);
      await destination.read(offset, actual);
      if (actual.equals(expected)) return;
      throw new DeviceError(
        `Cannot trust "${destination.name}": ${expected.length} bytes at ${offset} read back differently from what was written`,
        { offset, length: expected.length },
      );
    } finally {
      this.#readBack.release(buffer);
    }
  }
}

function asBuffer(buffer: Uint8Array, length: number): Buffer {
  return Buffer.from(buffer.buffer, buffer.byteOffset, length);
}

function alignDown(value: number, unit: number): number {
  return value === Infinity ? value : Math.max(unit, value - (value % unit));
}

/** A reflink reads the one device and writes the other; copying will tell which of them failed. */
function undecided(error: unknown): undefined {
  if (!(error instanceof DeviceError)) throw error;
}

function asSourceError(error: unknown, { offset, length }: ByteRange): unknown {
  if (!(error instanceof DeviceError)) return error;
  const { errno, away } = error;
  return new SourceReadError(error.message, { errno, away, offset, length, cause: error });
}
