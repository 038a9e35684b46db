// What is encoded is decoded to the same, and bytes at hand are as the NBD specification draws them.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  decodeContext,
  decodeContextQueries,
  decodeInfo,
  decodeInfoRequest,
  decodeOptionHeader,
  decodeServer,
  decodeText,
  encodeContext,
  encodeContextQueries,
  encodeGreeting,
  encodeInfo,
  encodeInfoRequest,
  encodeOption,
  encodeOptionReply,
  encodeServer,
  encodeText,
  type Info,
} from "../../../src/nbd/option-codec.ts";
import { InfoType } from "../../../src/nbd/protocol.ts";
import { ProtocolError } from "../../../src/nbd/protocol-error.ts";
import {
  decodeReplyHeader,
  decodeRequest,
  encodeDataChunk,
  encodeErrorChunk,
  encodeHoleChunk,
  encodeRequest,
  encodeSimpleReply,
  encodeStatusChunk,
  type Request,
  replyKind,
} from "../../../src/nbd/transmission-codec.ts";

const u16 = fc.nat(0xffff);
const u32 = fc.nat(0xffff_ffff);
const offset = fc.oneof(fc.nat(2 ** 31), fc.maxSafeNat());
const text = fc.string({ unit: "grapheme" }).filter((s) => !s.includes("\0"));
const cookie = { cookieHigh: 0x01020304, cookieLow: 0xf5f6f7f8 };

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

describe("The handshake's messages", () => {
  test("are these bytes", () => {
    expect(hex(encodeGreeting(3))).toBe("4e42444d41474943" + "49484156454f5054" + "0003");
    expect(hex(encodeOption(7, Buffer.from("ab")))).toBe("49484156454f5054" + "00000007" + "00000002" + "6162");
    expect(hex(encodeOptionReply(3, 0x80000001))).toBe("0003e889045565a9" + "00000003" + "80000001" + "00000000");
    expect(hex(encodeInfo({ type: InfoType.export, size: 2 ** 40, flags: 0x16d }))).toBe(
      "0000" + "0000010000000000" + "016d",
    );
  });

  test("names, infos and queries come out as they went in", () => {
    fc.assert(
      fc.property(
        text,
        text,
        fc.array(u16, { maxLength: 20 }),
        fc.array(text, { maxLength: 20 }),
        u32,
        (name, more, types, queries, id) => {
          expect(decodeServer(encodeServer(name, more))).toEqual({ name, description: more });
          expect(decodeInfoRequest(encodeInfoRequest(name, types))).toEqual({ name, types });
          expect(decodeContextQueries(encodeContextQueries(name, queries))).toEqual({ name, queries });
          expect(decodeContext(encodeContext(id, name))).toEqual({ id, name });
          const infos: Info[] = [
            { type: InfoType.name, name },
            { type: InfoType.description, description: more },
            { type: InfoType.blockSize, minimum: 1, preferred: 4096, maximum: id },
          ];
          for (const info of infos) expect(decodeInfo(encodeInfo(info))).toEqual(info);
        },
      ),
    );
  });

  test("decoders answer any bytes with a value or a ProtocolError", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        const data = Buffer.from(bytes);
        for (const decode of [decodeServer, decodeInfoRequest, decodeContextQueries, decodeContext, decodeInfo]) {
          try {
            decode(data);
          } catch (error) {
            expect(error).toBeInstanceOf(ProtocolError);
          }
        }
      }),
      { numRuns: 1000 },
    );
  });

  test("a number of queries that cannot fit is refused before anything is made of it", () => {
    const data = Buffer.from("00000000ffffffff00000000", "hex");
    expect(() => decodeContextQueries(data)).toThrow(ProtocolError);
  });

  test("an option of another magic number is refused", () => {
    const bytes = encodeOption(1);
    expect(decodeOptionHeader(bytes, 0)).toEqual({ option: 1, length: 0 });
    bytes[3] = 0;
    expect(() => decodeOptionHeader(bytes, 0)).toThrow(ProtocolError);
  });

  test("a text too long is cut between two characters", () => {
    for (const character of ["a", "é", "€", "😀"]) {
      const bytes = encodeText(`x${character.repeat(5000)}`);
      expect(bytes.length).toBeLessThanOrEqual(4096);
      expect(bytes.length).toBeGreaterThan(4092);
      expect(decodeText(bytes)).toMatch(new RegExp(`^x(${character})+$`, "u"));
    }
  });
});

describe("The transmission phase's messages", () => {
  test("are these bytes", () => {
    const request = Buffer.alloc(28);
    encodeRequest(request, 0, { flags: 1, type: 6, ...cookie, offset: 2 ** 40 + 512, length: 4096 });
    expect(hex(request)).toBe("25609513" + "0001" + "0006" + "01020304f5f6f7f8" + "0000010000000200" + "00001000");
    const simple = Buffer.alloc(16);
    encodeSimpleReply(simple, 0, 28, cookie);
    expect(hex(simple)).toBe("67446698" + "0000001c" + "01020304f5f6f7f8");
    const data = Buffer.alloc(28);
    encodeDataChunk(data, 0, { done: true, offset: 512, length: 2 }, cookie);
    expect(hex(data)).toBe("668e33ef" + "0001" + "0001" + "01020304f5f6f7f8" + "0000000a" + "0000000000000200");
    const hole = Buffer.alloc(32);
    encodeHoleChunk(hole, 0, { done: false, offset: 512, length: 65536 }, cookie);
    expect(hex(hole)).toBe(
      "668e33ef" + "0000" + "0002" + "01020304f5f6f7f8" + "0000000c" + "0000000000000200" + "00010000",
    );
    expect(hex(encodeErrorChunk(5, Buffer.from("no"), cookie))).toBe(
      "668e33ef" + "0001" + "8001" + "01020304f5f6f7f8" + "00000008" + "00000005" + "0002" + "6e6f",
    );
    expect(hex(encodeStatusChunk(7, [{ length: 512, flags: 3 }], true, cookie))).toBe(
      "668e33ef" + "0001" + "0005" + "01020304f5f6f7f8" + "0000000c" + "00000007" + "00000200" + "00000003",
    );
  });

  test("a request comes out as it went in, wherever it stands", () => {
    fc.assert(
      fc.property(
        u16,
        u16,
        u32,
        u32,
        offset,
        u32,
        fc.nat(9),
        (flags, type, cookieHigh, cookieLow, at, length, start) => {
          const request: Request = { flags, type, cookieHigh, cookieLow, offset: at, length };
          const bytes = Buffer.alloc(40);
          encodeRequest(bytes, start, request);
          const decoded: Request = { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
          expect(decodeRequest(bytes, start, decoded)).toBe(true);
          expect(decoded).toEqual(request);
          bytes[start] = 0;
          expect(decodeRequest(bytes, start, decoded)).toBe(false);
        },
      ),
    );
  });

  test("an offset beyond 2^53 stays beyond every device", () => {
    const bytes = Buffer.alloc(28);
    encodeRequest(bytes, 0, { flags: 0, type: 0, ...cookie, offset: 0, length: 1 });
    for (const high of [0x0020_0000, 0x7fff_ffff, 0xffff_ffff]) {
      bytes.writeUInt32BE(high, 16);
      const decoded: Request = { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
      decodeRequest(bytes, 0, decoded);
      expect(decoded.offset + decoded.length).toBeGreaterThan(Number.MAX_SAFE_INTEGER);
    }
  });

  test("a client knows the replies apart, and refuses what is none", () => {
    const bytes = Buffer.alloc(32);
    encodeSimpleReply(bytes, 0, 5, cookie);
    expect(decodeReplyHeader(bytes, 0)).toEqual({ kind: "simple", error: 5, ...cookie });
    encodeHoleChunk(bytes, 0, { done: true, offset: 0, length: 512 }, cookie);
    expect(decodeReplyHeader(bytes, 0)).toEqual({ kind: "chunk", done: true, type: 2, length: 12, ...cookie });
    bytes[1] = 0;
    expect(() => replyKind(bytes, 0)).toThrow(ProtocolError);
  });
});
