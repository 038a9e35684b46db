/**
 * Reads of the source on behalf of clients, who must get an answer even where the source gives none.
 *
 *     read ──► queue ──► slot ──► the device ──► private buffer ──► the client's buffer, if it still waits
 *                │                     │
 *                └── time is up ───────┴──► ETIMEDOUT to the client. In the queue it is forgotten; at the device it keeps
 *                                           its slot and its buffer until the device answers, which may be never
 *
 * The time is that of the source's silence: at the device it runs from there on, and in the queue from the last answer that
 * anybody got, since a source that is only slow gets to everybody in the end.
 *
 * The slots are the bound: each read that hangs takes a thread of the pool, and the destination needs some too. The
 * buffer is private because a read that was given up may still be filled, when the client's has long been used again.
 */
import type { Clock } from "../base/clock.ts";
import { DeviceError } from "../base/errors.ts";
import type { ByteRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { BufferShelf } from "./buffer-shelf.ts";
import type { CloneDeviceStats } from "./clone-device-stats.ts";
import { type Deadline, Deadlines } from "./deadlines.ts";

/** The most bytes read at once; longer reads are the caller's to cut. */
export const MOST_READ_AT_ONCE = 2 ** 20;
/** Bytes of buffers that are kept when nobody uses them. */
const MOST_KEPT = 8 * 2 ** 20;
/** More than this is never read within the event loop, though it be in memory: copying it takes longer than a thread's turn. */
const MOST_IMMEDIATE = 256 * 1024;

/** What it works on. */
export interface SourceReaderParts {
  source: BlockDevice;
  clock: Clock;
  /** How long a client waits for the source at most, ms. */
  timeoutMs: number;
  /** Reads in flight at once. */
  depth: number;
  /** Where it counts what the source gave, and whom it kept waiting too long. */
  stats: Pick<CloneDeviceStats, "sourceReadBytes" | "timeouts">;
}

/** What is to be read, and which part of it somebody waits for. */
export interface SourceRequest {
  /** At most MOST_READ_AT_ONCE bytes. */
  range: ByteRange;
  /** Where `buffer` begins, from the start of the range, bytes. */
  skip: number;
  /** Filled from there. */
  buffer: Uint8Array;
  /**
   * Called once when the read has ended, however late: with the range's bytes, to be handed back to `release()`, or with
   * nothing. Never later than the request settles, unless its time is up.
   */
  onEnd?: (bytes: Uint8Array | undefined) => void;
}

/** Reads the source for clients: so many at once, and none for longer than the time limit. */
export class SourceReader {
  readonly #source: BlockDevice;
  readonly #depth: number;
  readonly #deadlines: Deadlines;
  readonly #queueDeadlines: Deadlines;
  readonly #stats: SourceReaderParts["stats"];
  readonly #buffers = new BufferShelf(MOST_KEPT, (byteLength) => Buffer.allocUnsafeSlow(byteLength));
  /** In the order of arrival. */
  readonly #queue = new Set<PendingRead>();
  #running = 0;

  constructor({ source, clock, timeoutMs, depth, stats }: SourceReaderParts) {
    this.#source = source;
    this.#depth = depth;
    this.#stats = stats;
    this.#deadlines = new Deadlines(clock, timeoutMs);
    this.#queueDeadlines = new Deadlines(clock, timeoutMs);
  }

  /** Time limits for whatever else waits for the source. */
  get deadlines(): Deadlines {
    return this.#deadlines;
  }

  /** Fills `buffer` if the source has the bytes in memory; else false. @throws {DeviceError} */
  tryRead(offset: number, buffer: Uint8Array): boolean {
    if (buffer.length > MOST_IMMEDIATE || this.#queue.size > 0) return false;
    if (this.#source.tryRead?.(offset, buffer) !== true) return false;
    this.#stats.sourceReadBytes += buffer.length;
    return true;
  }

  /** Fills the request's buffer. @throws {DeviceError} of the source, or with ETIMEDOUT */
  read(request: SourceRequest): Promise<void> {
    return new Promise((resolve, reject) => {
      const read: PendingRead = { ...request, resolve, reject, deadline: undefined };
      // What is in memory needs no deadline, no slot and no thread.
      if (this.#readAtOnce(read, request.buffer)) return;
      if (this.#running < this.#depth) {
        this.#start(read);
      } else {
        read.deadline = this.#queueDeadlines.start(() => this.#giveUp(read));
        this.#queue.add(read);
      }
    });
  }

  /** A buffer of at least so many bytes, for as long as it is not handed back to `release()`. */
  borrow(byteLength: number): Uint8Array {
    return this.#buffers.take(byteLength);
  }

  /** Takes back what `onEnd` was given, or was borrowed. */
  release(bytes: Uint8Array): void {
    this.#buffers.put(bytes);
  }

  /** An error in the words of all devices, for somebody who has waited long enough for a range of the source. */
  timeoutError({ offset, length }: ByteRange): DeviceError {
    const seconds = this.#deadlines.timeoutMs / 1000;
    return new DeviceError(
      `Cannot read ${length} bytes at ${offset} from "${this.#source.name}": no answer for ${seconds} s (ETIMEDOUT)`,
      { errno: "ETIMEDOUT", offset, length },
    );
  }

  /** No timer is left behind. */
  close(): void {
    this.#deadlines.close();
    this.#queueDeadlines.close();
  }

  /** Serves a read from memory; false, with nothing done, where that cannot be. */
  #readAtOnce(read: PendingRead, buffer: Uint8Array): boolean {
    const { range, onEnd, skip } = read;
    if (this.#source.tryRead === undefined || range.length > MOST_IMMEDIATE || this.#queue.size > 0) return false;
    const isPrivate = onEnd !== undefined || range.length !== buffer.length;
    const bytes = isPrivate ? this.#buffers.take(range.length) : buffer;
    let done = false;
    try {
      done = this.#source.tryRead(range.offset, bytes.subarray(0, range.length));
    } catch (error) {
      if (isPrivate) this.#buffers.put(bytes);
      onEnd?.(undefined);
      read.reject(error);
      return true;
    }
    if (!done) {
      if (isPrivate) this.#buffers.put(bytes);
      return false;
    }
    this.#stats.sourceReadBytes += range.length;
    if (isPrivate) {
      buffer.set(bytes.subarray(skip, skip + buffer.length));
      this.#handOver(read, bytes);
    }
    read.resolve();
    return true;
  }

  #startNext(): void {
    const [read] = this.#queue;
    if (read === undefined) return;
    this.#queue.delete(read);
    if (read.deadline !== undefined) this.#queueDeadlines.end(read.deadline);
    this.#start(read);
  }

  #start(read: PendingRead): void {
    read.deadline = this.#deadlines.start(() => this.#giveUp(read));
    this.#running++;
    void this.#run(read);
  }

  async #run(read: PendingRead): Promise<void> {
    const { range, skip, onEnd } = read;
    const bytes = this.#buffers.take(range.length);
    try {
      await this.#source.read(range.offset, bytes.subarray(0, range.length));
    } catch (error) {
      this.#buffers.put(bytes);
      this.#end(read);
      onEnd?.(undefined);
      read.reject(error);
      return;
    }
    this.#stats.sourceReadBytes += range.length;
    read.buffer?.set(bytes.subarray(skip, skip + read.buffer.length));
    this.#end(read);
    this.#handOver(read, bytes);
    read.resolve();
  }

  #handOver(read: PendingRead, bytes: Uint8Array): void {
    if (read.onEnd === undefined) this.#buffers.put(bytes);
    else read.onEnd(bytes);
  }

  #end(read: PendingRead): void {
    if (read.deadline !== undefined) this.#deadlines.end(read.deadline);
    this.#queueDeadlines.renew();
    this.#running--;
    this.#startNext();
  }

  #giveUp(read: PendingRead): void {
    this.#stats.timeouts++;
    read.buffer = undefined; // from here on it is the client's alone
    if (this.#queue.delete(read)) read.onEnd?.(undefined);
    read.reject(this.timeoutError(read.range));
  }
}

/** A read that has not ended. */
interface PendingRead extends Omit<SourceRequest, "buffer"> {
  /** Undefined once its time was up. */
  buffer: Uint8Array | undefined;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
  /** Undefined as long as it does not wait. */
  deadline: Deadline | undefined;
}
