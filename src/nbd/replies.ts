/** The replies of one connection, simple or structured as was agreed, put where they go out from. */
import type { ContextStatus } from "./block-status.ts";
import { encodeText } from "./option-codec.ts";
import { ChunkType, Command, CommandFlag, Size } from "./protocol.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import { encodeSparseRead, SMALLEST_SPARSE_READ } from "./sparse-read.ts";
import {
  type Cookie,
  encodeChunkHeader,
  encodeDataChunk,
  encodeErrorChunk,
  encodeSimpleReply,
  encodeStatusChunk,
  type Request,
} from "./transmission-codec.ts";

/** Answers requests. */
export class Replies {
  /** Bytes that go before the data of a read. */
  readonly headerSize: number;
  readonly #structured: boolean;
  readonly #writer: ReplyWriter;

  constructor(writer: ReplyWriter, { structured }: { structured: boolean }) {
    this.headerSize = structured ? Size.dataChunkHeader : Size.simpleReply;
    this.#structured = structured;
    this.#writer = writer;
  }

  /**
   * Puts the headers to what was read, which stands in `buffer` behind their place at `at`, and leaves the zeros out where
   * that is allowed and worth it. Returns where the reply ends.
   */
  encodeRead(buffer: Buffer, at: number, request: Request): number {
    const { flags, offset, length } = request;
    if (!this.#structured) {
      encodeSimpleReply(buffer, at, 0, request);
    } else if (length >= SMALLEST_SPARSE_READ && (flags & CommandFlag.df) === 0) {
      return encodeSparseRead(buffer, at, request, request);
    } else {
      encodeDataChunk(buffer, at, { done: true, offset, length }, request);
    }
    return at + this.headerSize + length;
  }

  /** Says that a request without data to return is done. Of a read, a structured reply has to say it. */
  succeed(request: Request): void {
    if (this.#structured && request.type === Command.read) {
      const none = { done: true, type: ChunkType.none, length: 0 };
      encodeChunkHeader(this.#writer.room(Size.chunkHeader), this.#writer.position, none, request);
      this.#writer.advance(Size.chunkHeader);
    } else {
      this.#simple(0, request);
    }
  }

  /** Says that a request failed; a client of structured replies is told why. */
  fail(request: Cookie, errno: number, text: string): void {
    if (this.#structured) this.#writer.append(encodeErrorChunk(errno, encodeText(text), request));
    else this.#simple(errno, request);
  }

  /** Answers NBD_CMD_BLOCK_STATUS, which only clients of structured replies send. */
  status(request: Cookie, statuses: readonly ContextStatus[]): void {
    for (const [index, { id, runs }] of statuses.entries()) {
      this.#writer.append(encodeStatusChunk(id, runs, index === statuses.length - 1, request));
    }
  }

  #simple(errno: number, request: Cookie): void {
    encodeSimpleReply(this.#writer.room(Size.simpleReply), this.#writer.position, errno, request);
    this.#writer.advance(Size.simpleReply);
  }
}
