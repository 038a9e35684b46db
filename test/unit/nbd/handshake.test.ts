// What a server answers to options, decided without a socket. Each test is a rule of the NBD specification.
import { describe, expect, test } from "vitest";
import { ExportTable } from "../../../src/nbd/export.ts";
import { Handshake, type TlsMode } from "../../../src/nbd/handshake.ts";
import {
  decodeContext,
  decodeInfo,
  decodeOptionReplyHeader,
  decodeServer,
  encodeContextQueries,
  encodeInfoRequest,
} from "../../../src/nbd/option-codec.ts";
import { InfoType, Option, OptionReply, Size, TransmissionFlag } from "../../../src/nbd/protocol.ts";
import { ServedMemory } from "../../support/served-devices.ts";

const hydrated = { name: "x-clone:hydrated", runs: () => [] };
const disk = new ServedMemory(8192, { contexts: [hydrated, { name: "x-clone:other", runs: () => [] }] });
const other = new ServedMemory(4096);
const EXPORTS = new ExportTable(
  [
    { name: "disk", description: "the first", device: disk, readOnly: false },
    { name: "other", device: other, readOnly: true },
  ],
  "disk",
);

function handshake({ tls = "off" as TlsMode, secure = false, clientFlags = 3 } = {}) {
  return new Handshake({ exports: EXPORTS, tls, secure, clientFlags });
}

/** Answers an option; replies as type and data. */
function answer(to: Handshake, option: number, data: Buffer = Buffer.alloc(0), shuttingDown = false) {
  const { replies, next } = to.answer(option, data, { shuttingDown });
  const parsed = replies.map((bytes) => {
    const header = decodeOptionReplyHeader(bytes, 0);
    expect(header.option).toBe(option);
    expect(header.length).toBe(bytes.length - Size.optionReplyHeader);
    return { type: header.type, data: bytes.subarray(Size.optionReplyHeader) };
  });
  return { replies: parsed, types: parsed.map(({ type }) => type), next };
}

const {
  ack,
  info,
  metaContext,
  server,
  errInvalid,
  errPolicy,
  errTlsRequired,
  errUnknown,
  errUnsupported,
  errShutdown,
} = OptionReply;

describe("Handshake", () => {
  test("unknown client flags are not accepted, the known ones are", () => {
    expect([0, 1, 2, 3].every(Handshake.acceptsFlags)).toBe(true);
    expect([4, 7, 0x8000_0000, 0xffff_ffff].some(Handshake.acceptsFlags)).toBe(false);
  });

  test("an option that is not known is refused, and the next one is answered", () => {
    const shake = handshake();
    for (const option of [0, 4, Option.extendedHeaders, 12, 0xffff_ffff]) {
      expect(answer(shake, option, Buffer.from("anything"))).toMatchObject({
        types: [errUnsupported],
        next: { kind: "options" },
      });
    }
    expect(answer(shake, Option.list).types).toEqual([server, server, ack]);
  });

  test("ABORT is acknowledged, and ends the connection, also with TLS required or while shutting down", () => {
    for (const shake of [handshake(), handshake({ tls: "require" })]) {
      expect(answer(shake, Option.abort, undefined, true)).toMatchObject({ types: [ack], next: { kind: "close" } });
    }
  });

  test("LIST names every export with its description", () => {
    const { replies } = answer(handshake(), Option.list);
    expect(replies.slice(0, 2).map(({ data }) => decodeServer(data))).toEqual([
      { name: "disk", description: "the first" },
      { name: "other", description: "" },
    ]);
  });

  test.for([Option.list, Option.structuredReply])("option %i with data is invalid", (option) => {
    expect(answer(handshake(), option, Buffer.from("x")).types).toEqual([errInvalid]);
  });

  describe("INFO and GO", () => {
    test("tell size and flags, and what was asked for besides, and only GO ends the haggling", () => {
      const shake = handshake();
      const asked = [InfoType.name, InfoType.description, InfoType.blockSize, 77];
      for (const option of [Option.info, Option.go]) {
        const { replies, types, next } = answer(shake, option, encodeInfoRequest("", asked));
        expect(types).toEqual([info, info, info, info, ack]);
        expect(replies.slice(0, 4).map(({ data }) => decodeInfo(data))).toMatchObject([
          { type: InfoType.export, size: 8192 },
          { type: InfoType.name, name: "disk" },
          { type: InfoType.description, description: "the first" },
          { type: InfoType.blockSize, minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 },
        ]);
        expect(next.kind).toBe(option === Option.go ? "transmission" : "options");
      }
    });

    test("an export that is not there is unknown, and the client may go on", () => {
      expect(answer(handshake(), Option.go, encodeInfoRequest("nowhere", []))).toMatchObject({
        types: [errUnknown],
        next: { kind: "options" },
      });
    });

    test.for([
      "../disk",
      "disk/../disk",
      "./disk",
      "/dev/sda",
      "disk\n",
      "\u001b]0;x\u0007",
      "DISK",
      "disk ",
      "*",
      "%64isk",
    ])("the name of an export is a word, and no path or pattern: %j is unknown", (name) => {
      expect(answer(handshake(), Option.go, encodeInfoRequest(name, [])).types).toEqual([errUnknown]);
    });

    test.for([
      ["empty", ""],
      ["too short for the name", "000000056469736b"],
      ["without the count", "000000046469736b"],
      ["with fewer types than it counts", "000000046469736b00020001"],
      ["with bytes behind its end", "000000046469736b000055"],
      ["with a name that is not UTF-8", "00000002c3280000"],
      ["with a NUL in the name", "00000002410000 00"],
      ["with a name of 4 GiB", "ffffffff"],
    ] as const)("data that is %s is invalid", ([, hex]) => {
      const data = Buffer.from(hex.replaceAll(" ", ""), "hex");
      expect(answer(handshake(), Option.go, data)).toMatchObject({ types: [errInvalid], next: { kind: "options" } });
    });

    test("a name longer than 4096 bytes is invalid", () => {
      const data = Buffer.alloc(4 + 4097 + 2, "a");
      data.writeUInt32BE(4097, 0);
      data.writeUInt16BE(0, 4101);
      expect(answer(handshake(), Option.info, data).types).toEqual([errInvalid]);
    });

    test("flags tell what can be done: DF only with structured replies, nothing that writes where that is forbidden", () => {
      const flagsOf = (name: string, structured: boolean): number => {
        const shake = handshake();
        if (structured) answer(shake, Option.structuredReply);
        const [first] = answer(shake, Option.info, encodeInfoRequest(name, [])).replies;
        const told = first && decodeInfo(first.data);
        return told?.type === InfoType.export ? told.flags : 0;
      };
      const { hasFlags, readOnly, sendFlush, sendFua, sendTrim, sendWriteZeroes, sendDf } = TransmissionFlag;
      const { canMultiConn, sendCache, sendFastZero } = TransmissionFlag;
      const common = hasFlags + sendFlush + sendFua + canMultiConn + sendCache;
      expect(flagsOf("disk", false)).toBe(common + sendTrim + sendWriteZeroes + sendFastZero);
      expect(flagsOf("disk", true)).toBe(common + sendTrim + sendWriteZeroes + sendFastZero + sendDf);
      expect(flagsOf("other", false)).toBe(common + readOnly);
    });

    test("a client that asked for the block sizes has to keep to them, another has not", () => {
      for (const [types, knows] of [[[InfoType.blockSize], true] as const, [[], false] as const]) {
        const { next } = answer(handshake(), Option.go, encodeInfoRequest("disk", types));
        expect(next).toMatchObject({ session: { knowsBlockSizes: knows } });
      }
    });
  });

  describe("EXPORT_NAME", () => {
    test("is answered with size, flags and 124 zeroes, or without the zeroes where the client wants none", () => {
      for (const [clientFlags, length] of [[3, 10] as const, [1, 134] as const, [0, 134] as const, [2, 10] as const]) {
        const { replies, next } = handshake({ clientFlags }).answer(Option.exportName, Buffer.from("other"), {
          shuttingDown: false,
        });
        expect(replies.map((bytes) => bytes.length)).toEqual([length]);
        expect(replies[0]?.readBigUInt64BE(0)).toBe(4096n);
        expect(next).toMatchObject({ kind: "transmission", session: { served: { name: "other" }, structured: false } });
      }
    });

    test.for(["nowhere", "di", "\xc3("])("the name %o closes the connection without a word", (name) => {
      expect(handshake().answer(Option.exportName, Buffer.from(name, "latin1"), { shuttingDown: false })).toEqual({
        replies: [],
        next: { kind: "close" },
      });
    });

    test("closes the connection where TLS is required, or the server is shutting down", () => {
      const close = { replies: [], next: { kind: "close" } };
      expect(answer(handshake({ tls: "require" }), Option.exportName)).toMatchObject(close);
      expect(answer(handshake(), Option.exportName, undefined, true)).toMatchObject(close);
    });

    test("is all that a client may say that does not speak fixed newstyle", () => {
      const shake = handshake({ clientFlags: 2 });
      expect(answer(shake, Option.list)).toMatchObject({ replies: [], next: { kind: "close" } });
      expect(answer(shake, Option.startTls)).toMatchObject({ replies: [], next: { kind: "close" } });
    });
  });

  describe("TLS", () => {
    test("off: STARTTLS is refused by policy", () => {
      expect(answer(handshake(), Option.startTls).types).toEqual([errPolicy]);
    });

    test("required: everything else but ABORT is refused until it is spoken, and nothing afterwards", () => {
      const inTheClear = handshake({ tls: "require" });
      for (const option of [Option.list, Option.go, Option.info, Option.structuredReply, Option.setMetaContext, 99]) {
        expect(answer(inTheClear, option).types).toEqual([errTlsRequired]);
      }
      const secure = handshake({ tls: "require", secure: true });
      expect(answer(secure, Option.list).types).toEqual([server, server, ack]);
    });

    test.for(["on", "require"] as const)("%s: STARTTLS is acknowledged once, and begins TLS", (tls) => {
      expect(answer(handshake({ tls }), Option.startTls)).toMatchObject({ types: [ack], next: { kind: "tls" } });
      expect(answer(handshake({ tls }), Option.startTls, Buffer.from("x")).types).toEqual([errInvalid]);
      expect(answer(handshake({ tls, secure: true }), Option.startTls).types).toEqual([errInvalid]);
    });
  });

  describe("metadata contexts", () => {
    const structured = (): Handshake => {
      const shake = handshake();
      answer(shake, Option.structuredReply);
      return shake;
    };
    const names = (replies: { type: number; data: Buffer }[]): string[] =>
      replies.filter(({ type }) => type === metaContext).map(({ data }) => decodeContext(data).name);
    const contextsAfterGo = (shake: Handshake, name: string): string[] => {
      const { next } = answer(shake, Option.go, encodeInfoRequest(name, []));
      return next.kind === "transmission" ? next.session.contexts.map((context) => context.name) : [];
    };

    test.for([Option.listMetaContext, Option.setMetaContext])("option %i needs structured replies", (option) => {
      expect(answer(handshake(), option, encodeContextQueries("", [])).types).toEqual([errInvalid]);
    });

    test.for([
      [[], ["base:allocation", "x-clone:hydrated", "x-clone:other"]],
      [["base:"], ["base:allocation"]],
      [["x-clone:"], ["x-clone:hydrated", "x-clone:other"]],
      [["x-clone:other", "qemu:"], ["x-clone:other"]],
      [["base:allocation", "base:"], ["base:allocation"]],
      [["nbd-server:x"], []],
    ] as const)("LIST of %j is %j, with no ids", ([queries, found]) => {
      const { replies } = answer(structured(), Option.listMetaContext, encodeContextQueries("", queries));
      expect(names(replies)).toEqual(found);
      expect(replies.slice(0, -1).every(({ data }) => decodeContext(data).id === 0)).toBe(true);
    });

    test("SET selects what is named in full, under ids of its own, and nothing by a namespace or by nothing", () => {
      const shake = structured();
      const all = ["x-clone:hydrated", "base:allocation", "base:nothing"];
      const { replies, types } = answer(shake, Option.setMetaContext, encodeContextQueries("disk", all));
      expect(types).toEqual([metaContext, metaContext, ack]);
      expect(new Set(replies.slice(0, 2).map(({ data }) => decodeContext(data).id)).size).toBe(2);
      expect(contextsAfterGo(shake, "disk")).toEqual(["base:allocation", "x-clone:hydrated"]);
      for (const queries of [[], ["base:"], ["x-clone:"]]) {
        expect(answer(structured(), Option.setMetaContext, encodeContextQueries("disk", queries)).types).toEqual([ack]);
      }
    });

    test("SET replaces what was selected before, also where it fails", () => {
      const select = (shake: Handshake, name: string, query: string) =>
        answer(shake, Option.setMetaContext, encodeContextQueries(name, [query]));
      const replaced = structured();
      select(replaced, "disk", "base:allocation");
      select(replaced, "disk", "x-clone:other");
      expect(contextsAfterGo(replaced, "disk")).toEqual(["x-clone:other"]);
      for (const [name, query, error] of [
        ["nowhere", "base:allocation", errUnknown] as const,
        ["disk", "x", errInvalid] as const,
      ]) {
        const failed = structured();
        select(failed, "disk", "base:allocation");
        expect(select(failed, name, query).types).toEqual([error]);
        expect(contextsAfterGo(failed, "disk")).toEqual([]);
      }
    });

    test("what was selected for one export counts for no other, and the default is the same by either name", () => {
      const shake = structured();
      answer(shake, Option.setMetaContext, encodeContextQueries("disk", ["base:allocation"]));
      expect(contextsAfterGo(shake, "other")).toEqual([]);
      expect(contextsAfterGo(shake, "")).toEqual(["base:allocation"]);
    });

    test.for(["ffffffff", "00000000ffffffff", "0000000000000001ffffffff", "00000000000000000000"])(
      "data %s is invalid",
      (hex) => {
        expect(answer(structured(), Option.setMetaContext, Buffer.from(hex, "hex")).types).toEqual([errInvalid]);
      },
    );
  });

  test("while shutting down every option is refused with ERR_SHUTDOWN", () => {
    const options = [Option.list, Option.go, Option.startTls, Option.structuredReply, 99];
    for (const option of options) expect(answer(handshake(), option, undefined, true).types).toEqual([errShutdown]);
  });
});
