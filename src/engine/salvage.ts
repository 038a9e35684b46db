/**
 * The last use that is made of regions which cannot be read as a whole, before they are given up: most of their sectors often
 * can be read, and what can be is worth more than zeros.
 *
 *     zeros      all of the region, first: whatever ends this, nothing else shows through
 *     pieces     of 64 KiB, from both edges of the region, as `rescueAreas` does it
 *     sectors    of the pieces that could not be read, likewise
 *
 * Errors may cost seconds each, and a dead region has as many as sectors: so many are put up with in each region and no more.
 *
 * A source that is gone for good meanwhile, as a dying disk that is taken off its bus, is done without: what it has given is kept.
 * One that is only away, silent or not to be read at present ends it with an error instead: what could still be read of it another
 * day must not become zeros without anybody having said so.
 */
import type { Clock } from "../base/clock.ts";
import { ChangedError, DeviceError, withHint } from "../base/errors.ts";
import type { ByteRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { rescueAreas, type UnitRange } from "./bad-areas.ts";
import { showZeros } from "./show-zeros.ts";
import { isGoneForGood, isOfWholeSource } from "./source-errors.ts";

/** What it works on. */
export interface SalvageParts {
  /** Undefined where there is none: all becomes zeros. */
  source: BlockDevice | undefined;
  destination: BlockDevice;
  clock: Clock;
  /** How long one read may take, ms; whoever takes longer counts as away. Infinity: for ever. */
  timeoutMs: number;
  /** Told once, where the source is not asked any more because it is gone for good; a sentence. */
  onGone: (why: string) => void;
}

const PIECE_LENGTH = 65536;
const SMALLEST_SECTOR = 512;
const LARGEST_SECTOR = 4096;
/** Pieces, and then sectors, of one region that may fail. */
const MOST_ERRORS = 32;

/** What can be done where the source cannot be read at present. */
export const SOURCE_AWAY_HINT =
  "Nothing was given up: finalize again when the source can be read, or with --without-source, which makes zeros of all that is missing.";

/** Reads what it can. One region at a time, and none after an error: a read that took too long may still be under way. */
export class Salvage {
  readonly #parts: SalvageParts;
  #source: BlockDevice | undefined;
  readonly #buffer = new Uint8Array(PIECE_LENGTH);
  #readBytes = 0;

  constructor(parts: SalvageParts) {
    this.#parts = parts;
    this.#source = parts.source;
  }

  /** Bytes that could be read so far. */
  get readBytes(): number {
    return this.#readBytes;
  }

  /**
   * Gives a range of the destination what can be read of it, and zeros else. Not durable. Resolves to whether all was read.
   * @throws {DeviceError} where the destination fails, or the source is away, or not to be read for another reason that may pass
   * @throws {ChangedError} where the source is not what it was
   * @throws the reason of `signal`
   */
  async fill({ offset, length }: ByteRange, signal: AbortSignal): Promise<boolean> {
    signal.throwIfAborted();
    await showZeros(this.#parts.destination, { offset, length }, { mayPunch: true });
    const before = this.#readBytes;
    const pieces = await this.#read([{ start: 0, end: Math.ceil(length / PIECE_LENGTH) }], {
      range: { offset, length },
      unit: PIECE_LENGTH,
      signal,
    });
    const unit = Math.min(LARGEST_SECTOR, Math.max(SMALLEST_SECTOR, this.#parts.source?.blockSize ?? 0));
    const perPiece = PIECE_LENGTH / unit;
    const last = Math.ceil(length / unit);
    const sectors = pieces.map((piece) => ({ start: piece * perPiece, end: Math.min(last, (piece + 1) * perPiece) }));
    await this.#read(sectors, { range: { offset, length }, unit, signal });
    return this.#readBytes - before === length;
  }

  /** Copies areas of a range, in units of so many bytes, as far as they can be read; resolves to the units that cannot. */
  async #read(
    areas: UnitRange[],
    { range, unit: unitLength, signal }: { range: ByteRange; unit: number; signal: AbortSignal },
  ): Promise<number[]> {
    const bad: number[] = [];
    await rescueAreas<true>(areas, {
      tryUnit: async (unit) => {
        signal.throwIfAborted();
        const start = unit * unitLength;
        const part = { offset: range.offset + start, length: Math.min(unitLength, range.length - start) };
        if (await this.#copy(part, signal)) return undefined;
        bad.push(unit);
        return true;
      },
      giveUp: () => {},
      isOver: () => this.#source === undefined || bad.length >= MOST_ERRORS,
      retry: 0, // hydration has tried often enough
      pause: async () => {},
      mostFailed: MOST_ERRORS,
      width: 1,
    });
    return bad;
  }

  /** Whether it could be read. @throws as `fill()` */
  async #copy({ offset, length }: ByteRange, signal: AbortSignal): Promise<boolean> {
    const buffer = this.#buffer.subarray(0, length);
    try {
      await this.#readInTime(offset, buffer);
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      signal.throwIfAborted(); // a source is closed under whoever is to end: that says nothing of what it holds
      if (isGoneForGood(error)) this.#goOnWithout(error.message);
      else if (isOfWholeSource(error)) throw error instanceof ChangedError ? error : withHint(error, SOURCE_AWAY_HINT);
      return false;
    }
    await this.#parts.destination.write(offset, buffer);
    this.#readBytes += length;
    return true;
  }

  /** Whoever takes too long keeps the buffer. @throws {DeviceError} */
  async #readInTime(offset: number, buffer: Uint8Array): Promise<void> {
    const { clock, timeoutMs } = this.#parts;
    const source = this.#source;
    const reading = source?.read(offset, buffer);
    if (timeoutMs === Infinity) return await reading;
    const waiting = new AbortController();
    const tooLong = clock.sleep(timeoutMs, waiting.signal).then(() => {
      if (waiting.signal.aborted) return;
      const { length } = buffer;
      const what = `Cannot read ${length} bytes at ${offset} from "${source?.name}"`;
      const where = { errno: "ETIMEDOUT", offset, length };
      throw new DeviceError(`${what}: it has not answered for ${timeoutMs / 1000} s`, where);
    });
    await Promise.race([reading, tooLong]).finally(() => waiting.abort());
  }

  #goOnWithout(why: string): void {
    if (this.#source === undefined) return;
    this.#source = undefined;
    this.#parts.onGone(why);
  }
}
