/** The messages of the handshake, as bytes. Pure: what is sent is made here, what was received is taken apart here. */

import {
  GREETING_MAGIC,
  InfoType,
  MAX_STRING_LENGTH,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  OptionReply,
  Size,
} from "./protocol.ts";
import { ProtocolError } from "./protocol-error.ts";

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** What the server says first. */
export function encodeGreeting(handshakeFlags: number): Buffer {
  const bytes = Buffer.alloc(Size.greeting);
  bytes.writeBigUInt64BE(GREETING_MAGIC, 0);
  bytes.writeBigUInt64BE(OPTION_MAGIC, 8);
  bytes.writeUInt16BE(handshakeFlags, 16);
  return bytes;
}

/** An option as the client sends it. */
export function encodeOption(option: number, data: Uint8Array = new Uint8Array(0)): Buffer {
  const bytes = Buffer.alloc(Size.optionHeader + data.length);
  bytes.writeBigUInt64BE(OPTION_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(data.length, 12);
  bytes.set(data, Size.optionHeader);
  return bytes;
}

/** The first 16 bytes of an option. @throws {ProtocolError} where the magic number is another */
export function decodeOptionHeader(bytes: Buffer, at: number): { option: number; length: number } {
  if (bytes.readBigUInt64BE(at) !== OPTION_MAGIC) throw new ProtocolError("an option does not begin with IHAVEOPT");
  return { option: bytes.readUInt32BE(at + 8), length: bytes.readUInt32BE(at + 12) };
}

/** One reply to an option. */
export function encodeOptionReply(option: number, type: number, data: Uint8Array = new Uint8Array(0)): Buffer {
  const bytes = Buffer.alloc(Size.optionReplyHeader + data.length);
  bytes.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(data.length, 16);
  bytes.set(data, Size.optionReplyHeader);
  return bytes;
}

/** The first 20 bytes of a reply to an option. @throws {ProtocolError} where the magic number is another */
export function decodeOptionReplyHeader(bytes: Buffer, at: number): { option: number; type: number; length: number } {
  if (bytes.readBigUInt64BE(at) !== OPTION_REPLY_MAGIC) {
    throw new ProtocolError("a reply to an option does not begin with its magic number");
  }
  return { option: bytes.readUInt32BE(at + 8), type: bytes.readUInt32BE(at + 12), length: bytes.readUInt32BE(at + 16) };
}

/** A reply that refuses an option, with a text for people. */
export function encodeOptionError(option: number, type: number, text: string): Buffer {
  return encodeOptionReply(option, type, encodeText(text));
}

/** NBD_REP_SERVER: one export of the list. */
export function encodeServer(name: string, description = ""): Buffer {
  return Buffer.concat([encodeString(name), encodeText(description)]);
}

/** Data of NBD_REP_SERVER. @throws {ProtocolError} */
export function decodeServer(data: Buffer): { name: string; description: string } {
  const reader = new DataReader(data);
  const name = reader.string();
  return { name, description: decodeText(reader.rest()) };
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO. */
export function encodeInfoRequest(name: string, types: readonly number[]): Buffer {
  const bytes = Buffer.alloc(2 + 2 * types.length);
  bytes.writeUInt16BE(types.length, 0);
  for (const [index, type] of types.entries()) bytes.writeUInt16BE(type, 2 + 2 * index);
  return Buffer.concat([encodeString(name), bytes]);
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO. @throws {ProtocolError} */
export function decodeInfoRequest(data: Buffer): { name: string; types: number[] } {
  const reader = new DataReader(data);
  const name = reader.string();
  const types = Array.from({ length: reader.u16() }, () => reader.u16());
  reader.end();
  return { name, types };
}

/** What the NBD_REP_INFO replies say. Sizes are bytes. */
export type Info =
  | { type: typeof InfoType.export; size: number; flags: number }
  | { type: typeof InfoType.name; name: string }
  | { type: typeof InfoType.description; description: string }
  | { type: typeof InfoType.blockSize; minimum: number; preferred: number; maximum: number };

/** Data of NBD_REP_INFO. */
export function encodeInfo(info: Info): Buffer {
  if (info.type === InfoType.name) return withType(info.type, encodeText(info.name));
  if (info.type === InfoType.description) return withType(info.type, encodeText(info.description));
  if (info.type === InfoType.export) {
    const bytes = Buffer.alloc(10);
    bytes.writeBigUInt64BE(BigInt(info.size), 0);
    bytes.writeUInt16BE(info.flags, 8);
    return withType(info.type, bytes);
  }
  const bytes = Buffer.alloc(12);
  bytes.writeUInt32BE(info.minimum, 0);
  bytes.writeUInt32BE(info.preferred, 4);
  bytes.writeUInt32BE(info.maximum, 8);
  return withType(info.type, bytes);
}

/** Data of NBD_REP_INFO, or undefined where it is of a kind that is not known here. @throws {ProtocolError} */
export function decodeInfo(data: Buffer): Info | undefined {
  const reader = new DataReader(data);
  const type = reader.u16();
  if (type === InfoType.export) return { type, size: reader.size(), flags: reader.u16() };
  if (type === InfoType.name) return { type, name: decodeText(reader.rest()) };
  if (type === InfoType.description) return { type, description: decodeText(reader.rest()) };
  if (type !== InfoType.blockSize) return undefined;
  return { type, minimum: reader.u32(), preferred: reader.u32(), maximum: reader.u32() };
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
export function encodeContextQueries(name: string, queries: readonly string[]): Buffer {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length, 0);
  return Buffer.concat([encodeString(name), count, ...queries.map(encodeString)]);
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. @throws {ProtocolError} */
export function decodeContextQueries(data: Buffer): { name: string; queries: string[] } {
  const reader = new DataReader(data);
  const name = reader.string();
  const count = reader.u32();
  if (count > reader.left / 4) throw new ProtocolError(`${count} queries do not fit in ${data.length} bytes`);
  const queries = Array.from({ length: count }, () => reader.string());
  reader.end();
  return { name, queries };
}

/** Data of NBD_REP_META_CONTEXT. */
export function encodeContext(id: number, name: string): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(id, 0);
  return Buffer.concat([bytes, encodeText(name)]);
}

/** Data of NBD_REP_META_CONTEXT. @throws {ProtocolError} */
export function decodeContext(data: Buffer): { id: number; name: string } {
  const reader = new DataReader(data);
  return { id: reader.u32(), name: decodeText(reader.rest()) };
}

/** The reply to NBD_OPT_EXPORT_NAME, with the 124 zeroes or without. */
export function encodeExportReply(size: number, flags: number, zeroes: boolean): Buffer {
  const bytes = Buffer.alloc(Size.exportReply + (zeroes ? Size.exportReplyZeroes : 0));
  bytes.writeBigUInt64BE(BigInt(size), 0);
  bytes.writeUInt16BE(flags, 8);
  return bytes;
}

/** A string that a reply ends with, cut to what the protocol allows, between two characters. */
export function encodeText(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  if (bytes.length <= MAX_STRING_LENGTH) return bytes;
  let end = MAX_STRING_LENGTH;
  while (((bytes[end] as number) & 0xc0) === 0x80) end--; // never inside of a character
  return bytes.subarray(0, end);
}

/** A string of the protocol. @throws {ProtocolError} where it is no UTF-8, holds a NUL, or is too long */
export function decodeText(bytes: Uint8Array): string {
  if (bytes.length > MAX_STRING_LENGTH) throw new ProtocolError(`a string of ${bytes.length} bytes is too long`);
  if (bytes.includes(0)) throw new ProtocolError("a string holds a NUL");
  try {
    return utf8.decode(bytes);
  } catch (cause) {
    throw new ProtocolError("a string is not UTF-8", { cause });
  }
}

/** A string behind its length. */
function encodeString(text: string): Buffer {
  const bytes = encodeText(text);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length, 0);
  return Buffer.concat([length, bytes]);
}

function withType(type: number, data: Buffer): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(type, 0);
  return Buffer.concat([bytes, data]);
}

/** Takes the fields of an option's data one by one. What is missing is the peer's error. */
class DataReader {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Buffer) {
    this.#data = data;
  }

  get left(): number {
    return this.#data.length - this.#at;
  }

  u16(): number {
    return this.#take(2).readUInt16BE(0);
  }

  u32(): number {
    return this.#take(4).readUInt32BE(0);
  }

  /** A u64 that must be an exact number. */
  size(): number {
    const size = this.#take(8).readBigUInt64BE(0);
    if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw new ProtocolError(`a size of ${size} bytes is too large`);
    return Number(size);
  }

  string(): string {
    return decodeText(this.#take(this.u32()));
  }

  rest(): Buffer {
    return this.#take(this.left);
  }

  end(): void {
    if (this.left > 0) throw new ProtocolError(`${this.left} bytes too many`);
  }

  #take(length: number): Buffer {
    if (length > this.left) throw new ProtocolError(`${length - this.left} bytes are missing`);
    this.#at += length;
    return this.#data.subarray(this.#at - length, this.#at);
  }
}

/** Whether a reply to an option refuses it. */
export function isErrorReply(type: number): boolean {
  return type >= OptionReply.errUnsupported;
}
