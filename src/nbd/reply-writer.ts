/**
 * The replies on their way to a client. Small ones gather in a batch, which goes out with one write; a large one goes out
 * of the buffer it was read into. Buffers go back to the pool when the socket has taken their bytes.
 */
import type { Writable } from "node:stream";
import type { PayloadBuffers } from "./payload-buffers.ts";

/** Most bytes of one batch. */
export const BATCH_SIZE = 256 * 1024;

/** A buffer that the socket still reads from. */
interface Lease {
  buffer: Buffer;
  bytes: number;
  /** What to give back to the connection's allowance with it. */
  charge: number;
}

/** What a writer works with. */
export interface ReplyWriterOptions {
  socket: Writable;
  buffers: PayloadBuffers;
  /** Called after the socket took some bytes; `charge` is what was sent with them. */
  onWritten: (charge: number) => void;
}

/** One connection's output. */
export class ReplyWriter {
  readonly #socket: Writable;
  readonly #buffers: PayloadBuffers;
  readonly #onWritten: (charge: number) => void;
  readonly #leases: Lease[] = [];
  readonly #whenWritten: () => void;
  #batch: Buffer | undefined;
  #used = 0;
  #queued = 0;
  #charged = 0;
  #flushing: NodeJS.Immediate | undefined;
  /** Grows whenever the client takes something. */
  progress = 0;

  constructor({ socket, buffers, onWritten }: ReplyWriterOptions) {
    this.#socket = socket;
    this.#buffers = buffers;
    this.#onWritten = onWritten;
    this.#whenWritten = () => this.#written();
  }

  /** Bytes that the client has not taken yet. */
  get queued(): number {
    return this.#queued + this.#used;
  }

  /** Of those, the bytes that no allowance is charged for. */
  get uncharged(): number {
    return this.queued - this.#charged;
  }

  /** The batch, with room for `length` more bytes at `position`; they count once `advance()` is called. */
  room(length: number): Buffer {
    if (this.#used + length > BATCH_SIZE) this.flush();
    this.#batch ??= this.#buffers.take(BATCH_SIZE);
    return this.#batch;
  }

  /** Where in the batch the next bytes go. */
  get position(): number {
    return this.#used;
  }

  advance(length: number): void {
    this.#used += length;
  }

  /** Appends a copy of `bytes` to the batch. */
  append(bytes: Uint8Array): void {
    this.room(bytes.length).set(bytes, this.#used);
    this.#used += bytes.length;
  }

  /** Sends the first `length` bytes of a buffer of the pool, which is the writer's from now on. */
  send(buffer: Buffer, length: number, charge: number): void {
    this.#write(buffer, length, charge);
  }

  /** Sends what has gathered. */
  flush(): void {
    const [batch, used] = [this.#batch, this.#used];
    if (batch === undefined) return;
    this.#batch = undefined;
    this.#used = 0;
    if (used > 0) this.#write(batch, used, 0);
    else this.#buffers.give(batch); // who has nothing to say lends nothing
  }

  /** Sends what has gathered once the event loop has seen to everything that is ready now. */
  flushSoon(): void {
    this.#flushing ??= setImmediate(() => {
      this.#flushing = undefined;
      this.flush();
    });
  }

  #write(buffer: Buffer, bytes: number, charge: number): void {
    this.#queued += bytes;
    if (charge > 0) this.#charged += bytes;
    this.#leases.push({ buffer, bytes, charge });
    this.#socket.write(buffer.subarray(0, bytes), this.#whenWritten);
  }

  /** Writes end in the order they began in; a socket that fails ends them all. */
  #written(): void {
    const lease = this.#leases.shift();
    if (lease === undefined) return;
    this.#queued -= lease.bytes;
    if (lease.charge > 0) this.#charged -= lease.bytes;
    this.progress++;
    this.#buffers.give(lease.buffer);
    this.#onWritten(lease.charge);
  }
}
