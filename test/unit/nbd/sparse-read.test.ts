// The reply to a read with its zeros left out: a client that puts the chunks together gets what was read.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ChunkType, Size } from "../../../src/nbd/protocol.ts";
import { encodeSparseRead } from "../../../src/nbd/sparse-read.ts";
import { decodeReplyHeader, readOffset } from "../../../src/nbd/transmission-codec.ts";

const KIB = 1024;
const cookie = { cookieHigh: 1, cookieLow: 2 };

/** Encodes the reply to a read, and puts it together again as a client does. */
function reply(content: Buffer, offset: number, start = 0) {
  const buffer = Buffer.alloc(start + Size.dataChunkHeader + content.length, 0xaa);
  content.copy(buffer, start + Size.dataChunkHeader);
  const end = encodeSparseRead(buffer, start, { offset, length: content.length }, cookie);
  const result = Buffer.alloc(content.length, 0xee);
  const chunks: { type: number; start: number; length: number; done: boolean }[] = [];
  for (let at = start; at < end; ) {
    const header = decodeReplyHeader(buffer, at);
    if (header.kind !== "chunk") throw new Error("a simple reply");
    const from = readOffset(buffer, at + Size.chunkHeader) - offset;
    const isHole = header.type === ChunkType.offsetHole;
    const length = isHole ? buffer.readUInt32BE(at + Size.dataChunkHeader) : header.length - 8;
    if (isHole) result.fill(0, from, from + length);
    else buffer.copy(result, from, at + Size.dataChunkHeader, at + Size.dataChunkHeader + length);
    chunks.push({ type: header.type, start: from, length, done: header.done });
    at += Size.chunkHeader + header.length;
  }
  return { result, chunks, bytes: end - start };
}

describe("encodeSparseRead()", () => {
  test("loses no byte, whatever is zero, in chunks that follow each other, the last of them marked", () => {
    const piece = fc.record({ length: fc.integer({ min: 1, max: 100 * KIB }), zero: fc.boolean() });
    fc.assert(
      fc.property(
        fc.array(piece, { minLength: 1, maxLength: 8 }),
        fc.nat(2 ** 40),
        fc.nat(64),
        (pieces, offset, start) => {
          const content = Buffer.concat(pieces.map(({ length, zero }) => Buffer.alloc(length, zero ? 0 : 0x55)));
          const { result, chunks } = reply(content, offset, start);
          expect(result.equals(content)).toBe(true);
          let at = 0;
          for (const [index, chunk] of chunks.entries()) {
            expect(chunk.start).toBe(at);
            expect(chunk.done).toBe(index === chunks.length - 1);
            at += chunk.length;
          }
          expect(at).toBe(content.length);
          expect(chunks.every((chunk, index) => index === 0 || chunk.type !== chunks[index - 1]?.type)).toBe(true);
        },
      ),
    );
  });

  test("zeros make one hole of 32 bytes, data goes out as it stands", () => {
    expect(reply(Buffer.alloc(256 * KIB), 0)).toMatchObject({ bytes: 32, chunks: [{ type: ChunkType.offsetHole }] });
    const data = Buffer.alloc(256 * KIB, 1);
    expect(reply(data, 0)).toMatchObject({ bytes: 28 + data.length, chunks: [{ type: ChunkType.offsetData }] });
  });

  test("holes are aligned units, and a single byte makes one data", () => {
    const content = Buffer.alloc(160 * KIB);
    content[100 * KIB] = 1;
    expect(reply(content, 0).chunks.map(({ type, start, length }) => [type, start / KIB, length / KIB])).toEqual([
      [ChunkType.offsetHole, 0, 96],
      [ChunkType.offsetData, 96, 32],
      [ChunkType.offsetHole, 128, 32],
    ]);
    expect(reply(content, 16 * KIB).chunks.map(({ type, start, length }) => [type, start / KIB, length / KIB])).toEqual(
      [
        [ChunkType.offsetData, 0, 16],
        [ChunkType.offsetHole, 16, 64],
        [ChunkType.offsetData, 80, 32],
        [ChunkType.offsetHole, 112, 32],
        [ChunkType.offsetData, 144, 16],
      ],
    );
  });
});
