/**
 * The messages of the transmission phase, as bytes. Pure, and without allocation where a server under load needs it:
 * headers are written into buffers that the caller has. A request's cookie (the "handle" of older texts) is never a
 * number, only two 32-bit halves that go back as they came.
 */

import { CHUNK_DONE, ChunkType, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, Size, STRUCTURED_REPLY_MAGIC } from "./protocol.ts";
import { ProtocolError } from "./protocol-error.ts";

const TWO_TO_32 = 0x1_0000_0000;

/** A request without its payload. Offset and length are bytes. */
export interface Request {
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  /** Beyond 2^53 not exact, but then still beyond the end of every device. */
  offset: number;
  length: number;
}

/** Writes a request's header at `at`. */
export function encodeRequest(bytes: Buffer, at: number, request: Request): void {
  bytes.writeUInt32BE(REQUEST_MAGIC, at);
  bytes.writeUInt16BE(request.flags, at + 4);
  bytes.writeUInt16BE(request.type, at + 6);
  bytes.writeUInt32BE(request.cookieHigh, at + 8);
  bytes.writeUInt32BE(request.cookieLow, at + 12);
  writeOffset(bytes, at + 16, request.offset);
  bytes.writeUInt32BE(request.length, at + 24);
}

/** Reads a request's header at `at` into `request`. False where the magic number is another. */
export function decodeRequest(bytes: Buffer, at: number, request: Request): boolean {
  if (bytes.readUInt32BE(at) !== REQUEST_MAGIC) return false;
  request.flags = bytes.readUInt16BE(at + 4);
  request.type = bytes.readUInt16BE(at + 6);
  request.cookieHigh = bytes.readUInt32BE(at + 8);
  request.cookieLow = bytes.readUInt32BE(at + 12);
  request.offset = readOffset(bytes, at + 16);
  request.length = bytes.readUInt32BE(at + 24);
  return true;
}

/** The two halves of a request's cookie, in whatever carries them. */
export interface Cookie {
  readonly cookieHigh: number;
  readonly cookieLow: number;
}

/** Writes a simple reply (16 bytes) at `at`; 0 is success. */
export function encodeSimpleReply(bytes: Buffer, at: number, error: number, cookie: Cookie): void {
  bytes.writeUInt32BE(SIMPLE_REPLY_MAGIC, at);
  bytes.writeUInt32BE(error, at + 4);
  bytes.writeUInt32BE(cookie.cookieHigh, at + 8);
  bytes.writeUInt32BE(cookie.cookieLow, at + 12);
}

/** What a chunk of a structured reply begins with. */
export interface ChunkHeader {
  done: boolean;
  type: number;
  /** Of the payload, bytes. */
  length: number;
}

/** Writes the header of a chunk (20 bytes) at `at`. */
export function encodeChunkHeader(
  bytes: Buffer,
  at: number,
  { done, type, length }: ChunkHeader,
  cookie: Cookie,
): void {
  bytes.writeUInt32BE(STRUCTURED_REPLY_MAGIC, at);
  bytes.writeUInt16BE(done ? CHUNK_DONE : 0, at + 4);
  bytes.writeUInt16BE(type, at + 6);
  bytes.writeUInt32BE(cookie.cookieHigh, at + 8);
  bytes.writeUInt32BE(cookie.cookieLow, at + 12);
  bytes.writeUInt32BE(length, at + 16);
}

/** A piece of what a read found, as a chunk tells it. Bytes. */
export interface Piece {
  done: boolean;
  offset: number;
  length: number;
}

/** Writes what goes before the data of an NBD_REPLY_TYPE_OFFSET_DATA chunk (28 bytes) at `at`. */
export function encodeDataChunk(bytes: Buffer, at: number, { done, offset, length }: Piece, cookie: Cookie): void {
  encodeChunkHeader(bytes, at, { done, type: ChunkType.offsetData, length: length + 8 }, cookie);
  writeOffset(bytes, at + Size.chunkHeader, offset);
}

/** Writes a whole NBD_REPLY_TYPE_OFFSET_HOLE chunk (32 bytes) at `at`. */
export function encodeHoleChunk(bytes: Buffer, at: number, { done, offset, length }: Piece, cookie: Cookie): void {
  encodeChunkHeader(bytes, at, { done, type: ChunkType.offsetHole, length: 12 }, cookie);
  writeOffset(bytes, at + Size.chunkHeader, offset);
  bytes.writeUInt32BE(length, at + Size.dataChunkHeader);
}

/** A whole NBD_REPLY_TYPE_ERROR chunk, the last of its reply. `text` is UTF-8 of at most 4096 bytes. */
export function encodeErrorChunk(error: number, text: Uint8Array, cookie: Cookie): Buffer {
  const bytes = Buffer.alloc(Size.chunkHeader + 6 + text.length);
  encodeChunkHeader(bytes, 0, { done: true, type: ChunkType.error, length: 6 + text.length }, cookie);
  bytes.writeUInt32BE(error, Size.chunkHeader);
  bytes.writeUInt16BE(text.length, Size.chunkHeader + 4);
  bytes.set(text, Size.chunkHeader + 6);
  return bytes;
}

/** A run of block status: bytes, and the flags of its context. */
export interface Descriptor {
  length: number;
  flags: number;
}

/** A whole NBD_REPLY_TYPE_BLOCK_STATUS chunk of one metadata context. */
export function encodeStatusChunk(id: number, runs: readonly Descriptor[], done: boolean, cookie: Cookie): Buffer {
  const bytes = Buffer.alloc(Size.chunkHeader + 4 + 8 * runs.length);
  encodeChunkHeader(bytes, 0, { done, type: ChunkType.blockStatus, length: bytes.length - Size.chunkHeader }, cookie);
  bytes.writeUInt32BE(id, Size.chunkHeader);
  let at = Size.chunkHeader + 4;
  for (const { length, flags } of runs) {
    bytes.writeUInt32BE(length, at);
    bytes.writeUInt32BE(flags, at + 4);
    at += 8;
  }
  return bytes;
}

/** What a server's message in the transmission phase begins with. */
export type ReplyHeader =
  | { kind: "simple"; error: number; cookieHigh: number; cookieLow: number }
  | ({ kind: "chunk"; cookieHigh: number; cookieLow: number } & ChunkHeader);

/** Whether the message at `at` is a chunk, whose header is 20 bytes, or a simple reply of 16. @throws {ProtocolError} */
export function replyKind(bytes: Buffer, at: number): ReplyHeader["kind"] {
  const magic = bytes.readUInt32BE(at);
  if (magic === SIMPLE_REPLY_MAGIC) return "simple";
  if (magic === STRUCTURED_REPLY_MAGIC) return "chunk";
  throw new ProtocolError(`a reply begins with 0x${magic.toString(16)}, which is no reply's magic number`);
}

/** The header at `at`, which is all there. @throws {ProtocolError} */
export function decodeReplyHeader(bytes: Buffer, at: number): ReplyHeader {
  const cookie = { cookieHigh: bytes.readUInt32BE(at + 8), cookieLow: bytes.readUInt32BE(at + 12) };
  if (replyKind(bytes, at) === "simple") return { kind: "simple", error: bytes.readUInt32BE(at + 4), ...cookie };
  return {
    kind: "chunk",
    done: bytes.readUInt16BE(at + 4) % 2 === CHUNK_DONE,
    type: bytes.readUInt16BE(at + 6),
    length: bytes.readUInt32BE(at + 16),
    ...cookie,
  };
}

/** Writes an offset below 2^53 as a u64. */
export function writeOffset(bytes: Buffer, at: number, offset: number): void {
  const low = offset % TWO_TO_32;
  bytes.writeUInt32BE((offset - low) / TWO_TO_32, at);
  bytes.writeUInt32BE(low, at + 4);
}

/** Reads a u64 offset; not exact from 2^53 on. */
export function readOffset(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * TWO_TO_32 + bytes.readUInt32BE(at + 4);
}
