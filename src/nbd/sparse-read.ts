/** The structured reply to a read, with its zeros left out. */
import { Size } from "./protocol.ts";
import { type Cookie, encodeDataChunk, encodeHoleChunk } from "./transmission-codec.ts";

/** Zeros are looked for in aligned pieces of this size, bytes. A hole's chunk takes 32. */
const UNIT = 32 * 1024;
/** Reads below this are not looked into. */
export const SMALLEST_SPARSE_READ = 64 * 1024;

const ZEROS = Buffer.alloc(UNIT);

/**
 * Makes chunks of what a read of `length` bytes at `offset` found, which stands in `buffer` from `start` + 28 on, the
 * header's place left free. Returns where the reply ends. Data is only ever moved towards the start: a hole's chunk is
 * shorter than the zeros it stands for, so that the next header always fits before its data.
 */
export function encodeSparseRead(
  buffer: Buffer,
  start: number,
  range: { offset: number; length: number },
  cookie: Cookie,
): number {
  const { offset, length } = range;
  const data = start + Size.dataChunkHeader;
  let out = start;
  for (let at = 0; at < length; ) {
    const isHole = isZeroUnit(buffer, data, offset, length, at);
    let end = unitEnd(offset, length, at);
    while (end < length && isZeroUnit(buffer, data, offset, length, end) === isHole) end = unitEnd(offset, length, end);
    const piece = { done: end === length, offset: offset + at, length: end - at };
    if (isHole) {
      encodeHoleChunk(buffer, out, piece, cookie);
      out += Size.holeChunk;
    } else {
      const target = out + Size.dataChunkHeader;
      if (target !== data + at) buffer.copyWithin(target, data + at, data + end);
      encodeDataChunk(buffer, out, piece, cookie);
      out = target + piece.length;
    }
    at = end;
  }
  return out;
}

/** Where the aligned unit ends that the byte `at` of the range is in. */
function unitEnd(offset: number, length: number, at: number): number {
  return Math.min(length, at + UNIT - ((offset + at) % UNIT));
}

/** Whether the unit at `at` is whole and all zeros. One that holds data mostly shows it in the first byte looked at. */
function isZeroUnit(buffer: Buffer, data: number, offset: number, length: number, at: number): boolean {
  const end = unitEnd(offset, length, at);
  if (end - at !== UNIT || buffer[data + at] !== 0 || buffer[data + end - 1] !== 0) return false;
  return buffer.compare(ZEROS, 0, UNIT, data + at, data + end) === 0;
}
