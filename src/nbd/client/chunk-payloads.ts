/** The payloads of a structured reply's chunks, taken apart and checked (NBD "Structured reply types"). Pure. */
import { ChunkType, MAX_STRING_LENGTH, NbdErrno } from "../protocol.ts";
import { ProtocolError } from "../protocol-error.ts";
import { type Descriptor, readOffset } from "../transmission-codec.ts";
import { ServerError } from "./handshake-error.ts";
import { serverWords } from "./server-words.ts";

/** Most descriptors of one chunk of block status. */
export const MOST_DESCRIPTORS = 2 ** 20;
/** The longest payload of a chunk of block status, bytes. */
export const MOST_STATUS_LENGTH = 4 + 8 * MOST_DESCRIPTORS;
/** The longest payload of a chunk that tells an error, bytes: the error, a text and an offset. */
export const MOST_ERROR_LENGTH = 6 + MAX_STRING_LENGTH + 8;

const NAMES = new Map(Object.entries(NbdErrno).map(([name, value]) => [value as number, name]));

/** What the protocol calls an error: those that it does not know are to be taken for EINVAL (NBD "Error values"). */
export function errnoName(error: number): string {
  return NAMES.get(error) ?? "EINVAL";
}

/** The payload of an error chunk, also of a type that is not known: all begin alike. @throws {ProtocolError} */
export function decodeError(type: number, payload: Buffer): { error: ServerError; offset: number | undefined } {
  if (payload.length < 6) throw new ProtocolError(`an error of ${payload.length} bytes is too short`);
  const [error, length] = [payload.readUInt32BE(0), payload.readUInt16BE(4)];
  if (error === 0) throw new ProtocolError("it told an error that is none");
  const extra = payload.length - 6 - length;
  const wanted = type === ChunkType.errorOffset ? 8 : 0;
  if (extra < wanted || (extra > wanted && (type === ChunkType.error || type === ChunkType.errorOffset))) {
    throw new ProtocolError(`an error with a text of ${length} bytes does not have ${payload.length}`);
  }
  if (length > MAX_STRING_LENGTH) throw new ProtocolError(`an error's text of ${length} bytes is too long`);
  const text = serverWords(payload.subarray(6, 6 + length).toString("utf8"));
  const offset = type === ChunkType.errorOffset ? readOffset(payload, 6 + length) : undefined;
  return { error: new ServerError(errnoName(error), text), offset };
}

/** The payload of a chunk of block status. @throws {ProtocolError} */
export function decodeStatus(payload: Buffer): { id: number; runs: StatusRuns } {
  if (payload.length < 12 || payload.length % 8 !== 4) {
    throw new ProtocolError(`a block status of ${payload.length} bytes has no whole descriptors`);
  }
  return { id: payload.readUInt32BE(0), runs: new StatusRuns(payload.subarray(4)) };
}

/** Runs of block status, taken apart one by one: a million of them at once would be many times as large as they came. */
export class StatusRuns implements Iterable<Descriptor> {
  readonly #bytes: Buffer;

  /** @param bytes whole descriptors; they are copied */
  constructor(bytes: Buffer) {
    this.#bytes = Buffer.from(bytes);
  }

  /** How many there are. */
  get count(): number {
    return this.#bytes.length / 8;
  }

  *[Symbol.iterator](): Generator<Descriptor> {
    for (let at = 0; at < this.#bytes.length; at += 8) {
      yield { length: this.#bytes.readUInt32BE(at), flags: this.#bytes.readUInt32BE(at + 4) };
    }
  }

  /** Whether they tell of any bytes. */
  get tellAny(): boolean {
    for (const { length } of this) if (length > 0) return true;
    return false;
  }
}
