/**
 * Reads of the source on behalf of clients, who must get an answer even where the source gives none.
 *
 *     read ──► queue ──► slot ──► the device ──► private buffer ──► the client's buffer, if it still waits
 *       │        │                     │ ▲
 *       │        │                     └─┘ a passing error: tried again, after a short pause
 *       │        └── time is up ───────┴──► ETIMEDOUT to the client. In the queue it is forgotten, and where somebody else asks
 *       │                                   for all of it; at the device it keeps its slot and its buffer until the device
 *       │                                   answers, which may be never
 *       └── somebody else has the bytes, or waits for them (`ReadsInFlight`): they come from there, without a slot
 *
 * The time is that of the source's silence: at the device it runs from there on, and in the queue from the last answer that
 * anybody got, since a source that is only slow gets to everybody in the end.
 *
 * The slots are the bound: each read that hangs may take a thread of the pool, and the destination needs some too. The
 * buffer is private because a read that was given up may still be filled, when the client's has long been used again.
 *
 * What was read beside a copy that has the region already, but has not come to these bytes, is kept for it for a while.
 */
import { setMaxListeners } from "node:events";
import type { Clock } from "../base/clock.ts";
import { DeviceError } from "../base/errors.ts";
import type { ByteRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { BufferShelf } from "./buffer-shelf.ts";
import type { CloneDeviceStats } from "./clone-device-stats.ts";
import { type Deadline, Deadlines } from "./deadlines.ts";
import { type Fetch, ReadsInFlight } from "./reads-in-flight.ts";
import { isTransient, retryPauseMs } from "./source-errors.ts";

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
  /** Bytes in flight at once, of more than one read. Default: no bound but `depth`. */
  mostBytes?: number;
  /** The reads of all who read this source. Default: its own alone. */
  reads?: ReadsInFlight;
  /** Bytes kept of what nobody has used up yet. Default 0. */
  keptBytes?: number;
  /** How often a read is tried again after a passing error. Default 0. */
  retry?: number;
  /** Whether bytes have been found unreadable before: then one error is enough. */
  isUnreadable?: (range: ByteRange) => boolean;
  /** From 0 to 1. Default: the machine's. */
  random?: () => number;
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
  /** Whether bytes of the range are somebody else's to use up, who may not have asked for them yet. Default: without `onEnd`. */
  keep?: boolean;
  /** Nobody waits for it: an error is not worth another try. */
  speculative?: boolean;
}

/** Reads the source for clients: so many at once, and none for longer than the time limit. */
export class SourceReader {
  readonly #parts: SourceReaderParts;
  readonly #source: BlockDevice;
  readonly #reads: ReadsInFlight;
  readonly #deadlines: Deadlines;
  readonly #queueDeadlines: Deadlines;
  readonly #stats: SourceReaderParts["stats"];
  readonly #buffers = new BufferShelf(MOST_KEPT, (byteLength) => Buffer.allocUnsafeSlow(byteLength));
  /** In the order of arrival. */
  readonly #queue = new Set<PendingRead>();
  #running = 0;
  #runningBytes = 0;
  #answeredAt = -Infinity;
  /** What others use at present, until `release()`. */
  readonly #handedOver = new Map<Uint8Array, PendingRead>();
  /** What nobody has used up, the oldest first. */
  readonly #kept: PendingRead[] = [];
  #keptBytes = 0;
  readonly #closed = new AbortController();

  constructor(parts: SourceReaderParts) {
    const { source, clock, timeoutMs, stats, reads = new ReadsInFlight() } = parts;
    this.#parts = parts;
    this.#source = source;
    this.#reads = reads;
    this.#stats = stats;
    this.#deadlines = new Deadlines(clock, timeoutMs);
    this.#queueDeadlines = new Deadlines(clock, timeoutMs);
    setMaxListeners(0, this.#closed.signal); // every read listens while it waits to ask again
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
      // What is in memory needs no deadline, no slot and no thread.
      if (this.#readAtOnce(request, resolve, reject)) return;
      const fetch = this.#reads.fetch(request.range, () => this.#buffers.take(request.range.length));
      const { ownBytes } = fetch;
      const read: PendingRead = {
        ...request,
        resolve,
        reject,
        fetch,
        ownBytes,
        deadline: undefined,
        waitsForTurn: false,
        lastError: undefined,
      };
      if (ownBytes === 0 || this.#hasRoom(ownBytes)) {
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
    const read = this.#handedOver.get(bytes);
    this.#handedOver.delete(bytes);
    if (read === undefined) this.#buffers.put(bytes);
    else this.#letGo(read, bytes, read.keep ?? false);
  }

  /** An error in the words of all devices, for somebody who has waited long enough for a range of the source. */
  timeoutError({ offset, length }: ByteRange): DeviceError {
    const seconds = this.#deadlines.timeoutMs / 1000;
    return new DeviceError(
      `Cannot read ${length} bytes at ${offset} from "${this.#source.name}": no answer for ${seconds} s (ETIMEDOUT)`,
      { errno: "ETIMEDOUT", offset, length },
    );
  }

  /** No timer is left behind, and nothing is kept. */
  close(): void {
    this.#deadlines.close();
    this.#queueDeadlines.close();
    this.#closed.abort();
    this.#dropKept(0);
  }

  /** Serves a read from memory; false, with nothing done, where that cannot be. */
  #readAtOnce(request: SourceRequest, resolve: () => void, reject: (error: unknown) => void): boolean {
    const { range, onEnd, skip, buffer } = request;
    if (this.#source.tryRead === undefined || range.length > MOST_IMMEDIATE || this.#queue.size > 0) return false;
    const isPrivate = onEnd !== undefined || range.length !== buffer.length;
    const bytes = isPrivate ? this.#buffers.take(range.length) : buffer;
    let done = false;
    try {
      done = this.#source.tryRead(range.offset, bytes.subarray(0, range.length));
    } catch (error) {
      if (isPrivate) this.#buffers.put(bytes);
      onEnd?.(undefined);
      reject(error);
      return true;
    }
    if (!done) {
      if (isPrivate) this.#buffers.put(bytes);
      return false;
    }
    this.#stats.sourceReadBytes += range.length;
    if (isPrivate) {
      buffer.set(bytes.subarray(skip, skip + buffer.length));
      if (onEnd === undefined) this.#buffers.put(bytes);
      else onEnd(bytes);
    }
    resolve();
    return true;
  }

  #hasRoom(bytes: number): boolean {
    if (this.#running === 0) return true;
    return this.#running < this.#parts.depth && this.#runningBytes + bytes <= (this.#parts.mostBytes ?? Infinity);
  }

  #startQueued(): void {
    for (const read of this.#queue) {
      if (!this.#hasRoom(read.ownBytes)) return;
      this.#queue.delete(read);
      if (read.deadline !== undefined) this.#queueDeadlines.end(read.deadline);
      this.#start(read);
    }
  }

  #start(read: PendingRead): void {
    read.waitsForTurn = read.fetch.waitsForTurn;
    read.deadline = this.#deadlines.start(() => this.#giveUp(read));
    if (read.ownBytes > 0) {
      this.#running++;
      this.#runningBytes += read.ownBytes;
    }
    void this.#run(read);
  }

  async #run(read: PendingRead): Promise<void> {
    const { fetch, skip } = read;
    try {
      await fetch.run((offset, bytes) => this.#ask(read, offset, bytes));
    } catch (error) {
      this.#abandon(fetch);
      this.#end(read);
      read.onEnd?.(undefined);
      read.reject(error);
      return;
    }
    if (isForgotten(read)) {
      this.#abandon(fetch); // nobody has answered: who waits in the queue waits no longer for that
      return;
    }
    const { bytes } = fetch;
    read.buffer?.set(bytes.subarray(skip, skip + read.buffer.length));
    this.#end(read);
    if (read.onEnd === undefined) {
      this.#letGo(read, bytes, read.keep ?? true);
    } else {
      this.#handedOver.set(bytes, read);
      read.onEnd(bytes);
    }
    read.resolve();
  }

  /** Asks the device, again where that may help somebody who still waits. */
  async #ask(read: PendingRead, offset: number, bytes: Uint8Array): Promise<void> {
    const { clock, retry = 0, isUnreadable, random = Math.random } = this.#parts;
    for (let attempt = 0; ; attempt++) {
      try {
        await this.#source.read(offset, bytes);
        this.#stats.sourceReadBytes += bytes.length;
        return;
      } catch (error) {
        const tries = read.speculative ? 0 : retry;
        if (attempt >= tries || !isTransient(error) || isUnreadable?.({ offset, length: bytes.length })) throw error;
        read.lastError = error;
        await clock.sleep(retryPauseMs(attempt, random()), this.#closed.signal);
        if (read.buffer === undefined || this.#closed.signal.aborted) throw error;
      }
    }
  }

  #end(read: PendingRead): void {
    if (read.deadline !== undefined) this.#deadlines.end(read.deadline);
    this.#queueDeadlines.renew();
    this.#answeredAt = this.#parts.clock.now();
    if (read.ownBytes === 0) return;
    this.#running--;
    this.#runningBytes -= read.ownBytes;
    this.#startQueued();
  }

  #giveUp(read: PendingRead): void {
    // Whose bytes somebody else is to ask for waits in that one's queue.
    if (read.waitsForTurn && this.#deadlines.isRecent(this.#answeredAt)) {
      read.waitsForTurn = read.fetch.waitsForTurn;
      read.deadline = this.#deadlines.start(() => this.#giveUp(read));
      return;
    }
    read.buffer = undefined; // from here on it is the client's alone
    if (this.#queue.delete(read)) {
      this.#abandon(read.fetch);
      read.onEnd?.(undefined);
    } else if (isForgotten(read)) read.fetch.drop(); // there is no slot that bounds how many of these there are
    if (read.lastError === undefined && !read.speculative) this.#stats.timeouts++;
    read.reject(read.lastError ?? this.timeoutError(read.range));
  }

  #abandon(fetch: Fetch): void {
    fetch.release();
    if (fetch.taken !== undefined) this.#buffers.put(fetch.taken);
  }

  /** Nobody uses the bytes of a read any more; somebody may, though, before long. */
  #letGo(read: PendingRead, bytes: Uint8Array, keep: boolean): void {
    const most = this.#closed.signal.aborted ? 0 : (this.#parts.keptBytes ?? 0);
    if (!keep || read.ownBytes === 0 || bytes.length > most) {
      this.#abandon(read.fetch);
      return;
    }
    this.#kept.push(read);
    this.#keptBytes += bytes.length;
    this.#dropKept(most);
  }

  #dropKept(most: number): void {
    while (this.#keptBytes > most) {
      const { fetch } = this.#kept.shift() as PendingRead;
      this.#keptBytes -= fetch.bytes.length;
      this.#abandon(fetch);
    }
  }
}

/** Whether nobody has a use for the bytes of a read, which has asked for none itself. */
function isForgotten({ buffer, onEnd, ownBytes }: PendingRead): boolean {
  return buffer === undefined && onEnd === undefined && ownBytes === 0;
}

/** A read that has not ended. */
interface PendingRead extends Omit<SourceRequest, "buffer"> {
  /** Undefined once its time was up. */
  buffer: Uint8Array | undefined;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
  readonly fetch: Fetch;
  /** What it asks the device for, bytes. */
  readonly ownBytes: number;
  /** Undefined as long as it does not wait. */
  deadline: Deadline | undefined;
  /** Whether what it waited for had not been asked for when its time began to run. */
  waitsForTurn: boolean;
  /** Of the last try. */
  lastError: DeviceError | undefined;
}
