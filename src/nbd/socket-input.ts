/**
 * Bytes from a socket to whoever understands them, with as few copies as there can be. Reads land in one large buffer
 * that all connections share (each empties it before the next gets its turn) and messages are taken from it in place.
 * What is not whole yet is carried over, and put before the bytes of the next read:
 *
 *     ┌───────────── room ─────────────┬──────────────── reads ────────────────┐
 *     │                    [ carried ]─┤ [ what came now                  ]    │
 *     └────────────────────────────────┴───────────────────────────────────────┘
 *
 * A long payload is received straight into its own buffer. A consumer that can take no more blocks: then nothing is read
 * from the socket, which in turn blocks the client, and what was read already waits in the carry.
 */

/** The longest message that is taken in place, bytes: what a consumer may leave behind and ask to see whole. */
export const ROOM = 96 * 1024;
/** Bytes of one read. */
const READ_SIZE = 256 * 1024;
/**
 * Where such a payload has come, others like it mostly follow. Then the next message is begun with a small read, and the
 * bulk of its payload goes where it belongs at once, instead of being copied there out of a large read.
 */
const LARGE_PAYLOAD = 128 * 1024;
const SMALL_READ_SIZE = 4096;

/** The buffer that the connections of a server read into, one after the other. */
export class SharedBuffer {
  readonly bytes = Buffer.allocUnsafeSlow(ROOM + READ_SIZE);
  /** Where a socket may write. */
  readonly reads = this.bytes.subarray(ROOM);
  /** The same, where little is wanted. */
  readonly smallReads = this.bytes.subarray(ROOM, ROOM + SMALL_READ_SIZE);
}

/** Who understands the bytes. */
export interface Consumer {
  /**
   * Takes what it can of `bytes` from `start` to `end` and returns where it stopped. It gets the rest again, with more
   * behind it, and keeps no reference to `bytes`.
   */
  consume(bytes: Buffer, start: number, end: number): number;
}

/** A payload on its way into its own buffer. */
interface Payload {
  target: Buffer;
  filled: number;
  length: number;
  whenWhole: () => void;
}

/** One connection's input. */
export class SocketInput {
  readonly #shared: SharedBuffer;
  readonly #consumer: Consumer;
  /** Lets the socket go on. */
  readonly #resume: () => void;
  #payload: Payload | undefined;
  /** The last payload that had its own buffer was a large one. */
  #expectsLarge = false;
  #carry: Buffer | undefined;
  #carried = 0;
  #blocked = false;
  #consuming = false;
  #closed = false;
  /** Grows with everything that the client sends. */
  progress = 0;

  constructor(shared: SharedBuffer, consumer: Consumer, resume: () => void) {
    this.#shared = shared;
    this.#consumer = consumer;
    this.#resume = resume;
  }

  /** Whether the consumer can take no more for now. */
  get blocked(): boolean {
    return this.#blocked;
  }

  /** Whether the client has begun a payload and not ended it. */
  get inPayload(): boolean {
    return this.#payload !== undefined;
  }

  /** Where the socket's next bytes are to go. */
  next(): Uint8Array {
    const payload = this.#payload;
    if (payload === undefined || this.#blocked) {
      return this.#expectsLarge ? this.#shared.smallReads : this.#shared.reads;
    }
    return payload.target.subarray(payload.filled, payload.length);
  }

  /** The socket wrote `count` bytes to where `next()` had said. False where it is to stop reading. */
  received(count: number, where: Uint8Array): boolean {
    if (where !== this.#shared.reads && where !== this.#shared.smallReads) {
      this.progress++;
      this.#fill(count);
    } else {
      this.push(this.#shared.bytes, ROOM, ROOM + count);
      if (this.#payload === undefined) this.#expectsLarge = false;
    }
    return !this.#blocked;
  }

  /** Bytes that came some other way, `start` to `end` of `chunk`. False where the socket is to stop reading. */
  push(chunk: Buffer, start = 0, end = chunk.length): boolean {
    if (this.#closed) return true;
    this.progress++;
    let at = start;
    if (this.#payload !== undefined && !this.#blocked) {
      const { target, filled, length } = this.#payload;
      const count = Math.min(end - at, length - filled);
      chunk.copy(target, filled, at, at + count);
      at += count;
      this.#fill(count);
    }
    if (this.#blocked) this.#keep(chunk, at, end);
    else if (at < end) this.#consumeAfterCarry(chunk, at, end);
    return !this.#blocked;
  }

  /** For the consumer: the payload of `length` bytes, of which `filled` are there, is to be received into `target`. */
  receive(target: Buffer, filled: number, length: number, whenWhole: () => void): void {
    this.#payload = { target, filled, length, whenWhole };
    this.#expectsLarge = length >= LARGE_PAYLOAD;
  }

  /** For the consumer: no more, until `unblock()`. */
  block(): void {
    this.#blocked = true;
  }

  /** The consumer can take more. It is given what waits, and then the socket goes on. */
  unblock(): void {
    if (!this.#blocked || this.#consuming || this.#closed) return;
    this.#blocked = false;
    if (this.#carry !== undefined && this.#carried > 0) {
      const [bytes, end] = [this.#carry, this.#carried];
      this.#carry = undefined;
      this.#carried = 0;
      this.#consume(bytes, 0, end);
    }
    if (!this.#blocked && !this.#closed) this.#resume();
  }

  /** What comes from now on is thrown away. */
  close(): void {
    this.#closed = true;
    this.#blocked = false;
    this.#payload = undefined;
    this.#carry = undefined;
    this.#carried = 0;
  }

  #fill(count: number): void {
    const payload = this.#payload;
    if (payload === undefined) return;
    payload.filled += count;
    if (payload.filled < payload.length) return;
    this.#payload = undefined;
    payload.whenWhole();
  }

  /** Puts what was carried over before the bytes that came. */
  #consumeAfterCarry(chunk: Buffer, start: number, end: number): void {
    const carried = this.#carried;
    this.#carried = 0;
    if (carried === 0 || this.#carry === undefined) {
      this.#consume(chunk, start, end);
    } else if (chunk === this.#shared.bytes && carried <= start) {
      this.#carry.copy(chunk, start - carried, 0, carried);
      this.#consume(chunk, start - carried, end);
    } else {
      const joined = Buffer.concat([this.#carry.subarray(0, carried), chunk.subarray(start, end)]);
      this.#consume(joined, 0, joined.length);
    }
  }

  #consume(bytes: Buffer, start: number, end: number): void {
    this.#consuming = true;
    try {
      const at = this.#consumer.consume(bytes, start, end);
      if (!this.#closed) this.#keep(bytes, at, end);
    } finally {
      this.#consuming = false;
    }
  }

  /** Appends what was not taken to the carry. */
  #keep(bytes: Buffer, start: number, end: number): void {
    if (start >= end) return;
    const needed = this.#carried + end - start;
    const old = this.#carry;
    if (old === undefined || old.length < needed) {
      this.#carry = Buffer.allocUnsafeSlow(Math.max(needed, 4096));
      old?.copy(this.#carry, 0, 0, this.#carried);
    }
    bytes.copy(this.#carry as Buffer, this.#carried, start, end);
    this.#carried = needed;
  }
}
