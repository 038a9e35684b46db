import { ChunkType, Command } from "../protocol.ts";
import { ProtocolError } from "../protocol-error.ts";
import { decodeError, decodeStatus, errnoName, type StatusRuns } from "./chunk-payloads.ts";
import { Coverage } from "./coverage.ts";
import { ServerError } from "./handshake-error.ts";

/** A server that tells more errors than that of one request does not mean to end it. */
const MOST_ERRORS = 1000;

/** What a request is about. Bytes. */
export interface RequestFacts {
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  /** Where a read's bytes go. */
  readonly target?: Buffer;
  /** What it changes is durable when it is answered. */
  readonly durable?: boolean;
}

/**
 * A request that was sent, and what of its answer has come. It judges each part of the answer: what does not belong to
 * the request, comes twice or is missing at the end is the server's violation.
 */
export class PendingRequest {
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  /** By the clock, ms. */
  readonly sentAt: number;
  /** Block status, once it has come. */
  runs: StatusRuns | undefined;
  /** The socket still has bytes of it to send, which are the caller's. */
  isSending = false;
  readonly #target: Buffer | undefined;
  readonly #durable: boolean;
  readonly #coverage: Coverage | undefined;
  readonly #resolve: (runs: StatusRuns | undefined) => void;
  readonly #reject: (error: Error) => void;
  #error: ServerError | undefined;
  #errors = 0;
  /** The server has said its last of it. */
  #answered = false;

  constructor(
    { type, offset, length, target, durable = false }: RequestFacts,
    sentAt: number,
    resolve: (runs: StatusRuns | undefined) => void,
    reject: (error: Error) => void,
  ) {
    this.type = type;
    this.offset = offset;
    this.length = length;
    this.sentAt = sentAt;
    this.#target = target;
    this.#durable = durable;
    this.#coverage = target === undefined ? undefined : new Coverage();
    this.#resolve = resolve;
    this.#reject = reject;
  }

  /** Whether it changes what the server keeps. */
  get isChange(): boolean {
    return this.type === Command.write || this.type === Command.writeZeroes || this.type === Command.trim;
  }

  /** Whether the server has done a change that needs a flush yet. */
  get needsFlush(): boolean {
    return this.isChange && this.#answered && this.#error === undefined && !this.#durable;
  }

  /** Where the bytes of a piece go, which are on their way. @throws {ProtocolError} where they were not asked for */
  place(offset: number, length: number): Buffer {
    const target = this.#target;
    if (target === undefined) throw new ProtocolError("it sent data that was not asked for");
    const start = offset - this.offset;
    if (length === 0) throw new ProtocolError("it sent a piece without bytes");
    if (start < 0 || start + length > this.length) {
      throw new ProtocolError(
        `it sent ${length} bytes at ${offset}, asked were ${this.length} bytes at ${this.offset}`,
      );
    }
    (this.#coverage as Coverage).add(start, start + length);
    return target.subarray(start, start + length);
  }

  /** The payload of a chunk that is not data. @throws {ProtocolError} */
  accept(type: number, payload: Buffer, contextId: number | undefined): void {
    if (isErrorChunk(type)) {
      this.#acceptError(type, payload);
      return;
    }
    if (type !== ChunkType.blockStatus || this.type !== Command.blockStatus) {
      throw new ProtocolError(`a chunk of type ${type} is no answer to command ${this.type}`);
    }
    const { id, runs } = decodeStatus(payload);
    if (id !== contextId) throw new ProtocolError(`it told the status of context ${id}, which was not agreed on`);
    if (this.runs !== undefined) throw new ProtocolError("it told the status of a range twice");
    this.runs = runs;
  }

  /** A simple reply: the number of an error, or 0. */
  acceptSimple(error: number): void {
    if (error !== 0) this.#error = new ServerError(errnoName(error), "");
  }

  /** The answer is complete. @throws {ProtocolError} where something of it is missing */
  end(): void {
    if (this.#error === undefined) {
      if (this.#coverage?.isWhole(this.length) === false) throw new ProtocolError("it did not send all of a read");
      // Ceph's server sent runs without bytes among others: they say nothing, but with others they do no harm.
      if (this.type === Command.blockStatus && this.runs?.tellAny !== true) {
        throw new ProtocolError("it told no status of a range");
      }
    }
    this.#answered = true;
    this.#settle();
  }

  /** The socket has taken all of it. */
  sent(): void {
    this.isSending = false;
    if (this.#answered) this.#settle();
  }

  /** There will be no answer. */
  fail(error: Error): void {
    this.#reject(error);
  }

  /** The caller gets its buffer back only when nobody reads from it any more, however early the answer came. */
  #settle(): void {
    if (this.isSending) return;
    if (this.#error === undefined) this.#resolve(this.runs);
    else this.#reject(this.#error);
  }

  #acceptError(type: number, payload: Buffer): void {
    const { error, offset } = decodeError(type, payload);
    if (offset !== undefined && (offset < this.offset || offset > this.offset + this.length)) {
      throw new ProtocolError(`it told an error at ${offset}, asked were ${this.length} bytes at ${this.offset}`);
    }
    this.#errors += 1;
    if (this.#errors > MOST_ERRORS) throw new ProtocolError("it does not stop to tell errors of one request");
    this.#error ??= error;
  }
}

/** Chunk types with bit 15 tell errors, also those that are not known. */
export function isErrorChunk(type: number): boolean {
  return type >= 0x8000;
}
