/**
 * The replies of a server, as they come: simple ones, and chunks of structured ones, of any requests in any order. The bytes
 * of reads go from the socket straight into the buffers of those who asked; only their beginnings, which come with the
 * header in one read, are copied.
 */
import { ChunkType, Command, Size } from "../protocol.ts";
import { ProtocolError } from "../protocol-error.ts";
import type { SocketInput } from "../socket-input.ts";
import { type ChunkHeader, decodeReplyHeader, readOffset, replyKind } from "../transmission-codec.ts";
import { MOST_ERROR_LENGTH, MOST_STATUS_LENGTH } from "./chunk-payloads.ts";
import { isErrorChunk, type PendingRequest } from "./pending-request.ts";

/** A chunk up to this long is waited for in the shared buffer; a longer one gets its own. Bytes. */
const LARGEST_IN_PLACE = 32 * 1024;

/** What a reader needs of its connection. */
export interface ReplyReaderOptions {
  input: Pick<SocketInput, "receive">;
  /** Whether structured replies were agreed on. */
  structured: boolean;
  contextId: number | undefined;
  /** The request of a cookie, if there is one. */
  find: (cookieHigh: number, cookieLow: number) => PendingRequest | undefined;
  /** The request of a cookie is answered. */
  onEnd: (cookieLow: number, request: PendingRequest) => void;
  /** The server broke the protocol. From then on nothing may be fed. */
  onViolation: (error: ProtocolError) => void;
}

/** One connection's replies. */
export class ReplyReader {
  readonly #options: ReplyReaderOptions;
  #broken = false;

  constructor(options: ReplyReaderOptions) {
    this.#options = options;
  }

  /** Takes what it can of `bytes` from `start` to `end`, and returns where it stopped. */
  consume(bytes: Buffer, start: number, end: number): number {
    let at = start;
    try {
      while (!this.#broken && end - at >= Size.simpleReply) {
        const next = this.#message(bytes, at, end);
        if (next === at) break;
        at = next;
      }
    } catch (error) {
      this.#fail(error);
    }
    return this.#broken ? end : at;
  }

  /** One message, or nothing of it where it is not all there. */
  #message(bytes: Buffer, at: number, end: number): number {
    const kind = replyKind(bytes, at);
    if (kind === "chunk" && end - at < Size.chunkHeader) return at;
    const header = decodeReplyHeader(bytes, at);
    const request = this.#options.find(header.cookieHigh, header.cookieLow);
    if (request === undefined) throw new ProtocolError("it answered a request that was not made");
    if (header.kind === "simple") {
      return this.#simple(request, header.cookieLow, header.error, bytes, at + Size.simpleReply, end);
    }
    if (!this.#options.structured) throw new ProtocolError("it sent a structured reply, which was not agreed on");
    if (header.type === ChunkType.offsetData) return this.#data(request, header, header.cookieLow, bytes, at, end);
    checkLength(header, request);
    const body = at + Size.chunkHeader;
    const finish = (payload: Buffer): void => {
      this.#chunk(request, header, payload);
      if (header.done) this.#end(header.cookieLow, request);
    };
    if (end - body >= header.length) {
      finish(bytes.subarray(body, body + header.length));
      return body + header.length;
    }
    if (header.length <= LARGEST_IN_PLACE) return at;
    const payload = Buffer.allocUnsafeSlow(header.length);
    this.#receive(payload, bytes, body, end, () => finish(payload));
    return end;
  }

  #simple(request: PendingRequest, cookie: number, error: number, bytes: Buffer, body: number, end: number): number {
    if (error === 0 && this.#options.structured && request.type === Command.read) {
      throw new ProtocolError("it answered a read by a simple reply, structured ones were agreed on");
    }
    request.acceptSimple(error);
    if (error !== 0 || request.type !== Command.read) {
      this.#end(cookie, request);
      return body;
    }
    const target = request.place(request.offset, request.length);
    return this.#receive(target, bytes, body, end, () => this.#end(cookie, request));
  }

  #data(request: PendingRequest, header: ChunkHeader, cookie: number, bytes: Buffer, at: number, end: number): number {
    if (header.length <= 8) throw new ProtocolError(`a piece of data of ${header.length} bytes is too short`);
    if (end - at < Size.dataChunkHeader) return at;
    const offset = readOffset(bytes, at + Size.chunkHeader);
    const target = request.place(offset, header.length - 8);
    return this.#receive(target, bytes, at + Size.dataChunkHeader, end, () => {
      if (header.done) this.#end(cookie, request);
    });
  }

  #chunk(request: PendingRequest, { type, done }: ChunkHeader, payload: Buffer): void {
    if (type === ChunkType.none) {
      if (!done) throw new ProtocolError("a chunk that says nothing is not the last");
    } else if (type === ChunkType.offsetHole) {
      request.place(readOffset(payload, 0), payload.readUInt32BE(8)).fill(0);
    } else {
      request.accept(type, payload, this.#options.contextId);
    }
  }

  /** Copies what is there of a payload; the rest goes where it belongs by itself. Returns where the copied part ends. */
  #receive(target: Buffer, bytes: Buffer, body: number, end: number, whenWhole: () => void): number {
    const there = Math.min(end - body, target.length);
    bytes.copy(target, 0, body, body + there);
    if (there === target.length) whenWhole();
    else {
      this.#options.input.receive(target, there, target.length, () => {
        try {
          whenWhole();
        } catch (error) {
          this.#fail(error);
        }
      });
    }
    return body + there;
  }

  #end(cookieLow: number, request: PendingRequest): void {
    request.end();
    this.#options.onEnd(cookieLow, request);
  }

  #fail(error: unknown): void {
    if (!(error instanceof ProtocolError)) throw error;
    this.#broken = true;
    this.#options.onViolation(error);
  }
}

/** Bounds a payload before memory is taken for it. */
function checkLength({ type, length }: ChunkHeader, request: PendingRequest): void {
  if (type === ChunkType.blockStatus && request.type !== Command.blockStatus) {
    throw new ProtocolError("it told a status that was not asked for");
  }
  const [least, most] = boundsOf(type);
  if (length >= least && length <= most) return;
  throw new ProtocolError(`a chunk of type ${type} does not have ${length} bytes`);
}

function boundsOf(type: number): [number, number] {
  if (type === ChunkType.none) return [0, 0];
  if (type === ChunkType.offsetHole) return [12, 12];
  if (type === ChunkType.blockStatus) return [12, MOST_STATUS_LENGTH];
  if (isErrorChunk(type)) return [6, MOST_ERROR_LENGTH];
  throw new ProtocolError(`it sent a chunk of the unknown type ${type}`);
}
