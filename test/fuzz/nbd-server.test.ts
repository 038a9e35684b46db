// A session that goes as it should, cut off at every byte, and mutated at random. Whatever is sent, the server closes the
// connection or answers; it never throws, keeps no memory, does no part of a write, and serves the next client as if
// nothing had been. CLONE_FUZZ_RUNS=1000000 goes on for longer.
import { connect } from "node:net";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { TlsMode } from "../../src/nbd/handshake.ts";
import { encodeContextQueries, encodeInfoRequest, encodeOption } from "../../src/nbd/option-codec.ts";
import { Command, CommandFlag, InfoType, Option } from "../../src/nbd/protocol.ts";
import { CLIENT_FLAGS, NbdClient, requestBytes } from "../support/nbd-client.ts";
import { testServer, until } from "../support/nbd-server.ts";
import { ServedMemory } from "../support/served-devices.ts";

const RUNS = Number(process.env.CLONE_FUZZ_RUNS ?? 10_000);
const SIZE = 1024 * 1024;

/** Where the session writes, and how much: the first fits in place, the second gets its own buffer. */
const WRITES = [
  { offset: 4096, length: 48 },
  { offset: 65_536, length: 40_000 },
  { offset: 512, length: 8 },
];

/** The pieces of a session, in order, as the client sends them. */
function session(): Buffer[] {
  const write = (index: number, flags = 0): Buffer => {
    const { offset, length } = WRITES[index] as { offset: number; length: number };
    return requestBytes({ type: Command.write, offset, data: Buffer.alloc(length, index + 1), flags, cookie: index });
  };
  return [
    CLIENT_FLAGS,
    encodeOption(Option.list),
    encodeOption(Option.structuredReply),
    encodeOption(99, Buffer.from("what is this")),
    encodeOption(Option.listMetaContext, encodeContextQueries("disk", ["base:"])),
    encodeOption(Option.setMetaContext, encodeContextQueries("disk", ["base:allocation"])),
    encodeOption(Option.info, encodeInfoRequest("disk", [InfoType.name, InfoType.description])),
    encodeOption(Option.go, encodeInfoRequest("disk", [InfoType.blockSize])),
    write(0),
    requestBytes({ type: Command.read, offset: 4096, length: 48, cookie: 10 }),
    write(1),
    requestBytes({ type: Command.blockStatus, length: SIZE, cookie: 11 }),
    requestBytes({ type: Command.trim, offset: SIZE - 4096, length: 4096, cookie: 12 }),
    write(2, CommandFlag.fua),
    requestBytes({ type: Command.writeZeroes, offset: SIZE - 8192, length: 4096, cookie: 13 }),
    requestBytes({ type: Command.read, offset: 0, length: 300_000, cookie: 14 }),
    requestBytes({ type: Command.flush, cookie: 15 }),
    requestBytes({ type: Command.disconnect }),
  ];
}

/** Sends the pieces and waits until the server has closed its side. */
async function play(path: string, pieces: readonly Uint8Array[], abrupt: boolean): Promise<void> {
  const socket = connect({ path, allowHalfOpen: true });
  socket.on("error", () => {}); // it may well be closed by the time we write
  const closed = new Promise((resolve) => socket.once("close", resolve));
  socket.resume();
  for (const [index, piece] of pieces.entries()) {
    socket.write(piece);
    if (index < pieces.length - 1) await new Promise((resolve) => setImmediate(resolve));
  }
  if (abrupt) socket.destroySoon();
  else socket.end();
  await closed;
}

describe.for([
  ["at once", true, "off"],
  ["later", false, "off"],
  ["at once, from a server that speaks TLS too", true, "on"],
] as [string, boolean, TlsMode][])("A session answered %s", ([, immediate, mode]) => {
  const newServer = () =>
    testServer({
      device: new ServedMemory(SIZE, { immediate }),
      tls: { mode, credentials: { kind: "psk", keyOf: () => undefined } },
      limits: { closeMs: 1000 },
    });

  test("and cut off at any byte has done the writes that were whole, and no part of another", async () => {
    const pieces = session();
    const bytes = Buffer.concat(pieces);
    const long = pieces.slice(0, 10).reduce((sum, piece) => sum + piece.length, 0);
    const cuts: number[] = [];
    for (let cut = 0; cut <= bytes.length; cut += cut > long + 100 && cut < long + 39_900 ? 997 : 1) cuts.push(cut);
    await using served = await newServer();
    for (const cut of cuts) {
      served.device.bytes.fill(0);
      await play(served.path, [bytes.subarray(0, cut)], false);
      let end = 0;
      for (const piece of pieces) {
        end += piece.length;
        const index = WRITES.findIndex(
          (_, at) => piece.length >= 28 && piece.readUInt16BE(6) === 1 && piece[15] === at,
        );
        if (index < 0 || piece.readUInt32BE(0) !== 0x25609513) continue;
        const { offset, length } = WRITES[index] as { offset: number; length: number };
        const found = served.device.bytes.subarray(offset, offset + length);
        const expected = Buffer.alloc(length, cut >= end ? index + 1 : 0);
        expect(found.equals(expected), `write ${index} after ${cut} bytes`).toBe(true);
      }
    }
    await until(() => served.server.connections === 0);
    expect(served.server.bytesInFlight).toBe(0);
    expect(served.server.counters.connectionsDropped).toBe(0);
  });

  test("and mutated is answered or closed, and the next client is served", async () => {
    const pieces = session();
    const mutation = fc.oneof(
      fc.record({ kind: fc.constant("flip" as const), at: fc.double({ min: 0, max: 1, noNaN: true }), bit: fc.nat(7) }),
      fc.record({
        kind: fc.constant("set" as const),
        at: fc.double({ min: 0, max: 1, noNaN: true }),
        bit: fc.constantFrom(0, 255, 128, 127),
      }),
      fc.record({
        kind: fc.constant("drop" as const),
        at: fc.double({ min: 0, max: 1, noNaN: true }),
        bit: fc.nat(40),
      }),
      fc.record({
        kind: fc.constant("repeat" as const),
        at: fc.double({ min: 0, max: 1, noNaN: true }),
        bit: fc.nat(40),
      }),
    );
    const plan = fc.record({
      mutations: fc.array(mutation, { minLength: 1, maxLength: 4 }),
      /** Pieces of the session left out, so that what comes late is reached by few bytes. */
      without: fc.subarray([...pieces.keys()].filter((index) => index !== 0)),
      cuts: fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 3 }),
      abrupt: fc.boolean(),
    });
    await using served = await newServer();
    await using control = await NbdClient.go(served);
    await fc.assert(
      fc.asyncProperty(plan, async ({ mutations, without, cuts, abrupt }) => {
        let bytes = Buffer.concat(pieces.filter((_, index) => !without.includes(index)));
        for (const { kind, at, bit } of mutations) {
          const place = Math.min(bytes.length - 1, Math.floor(at * bytes.length));
          if (kind === "flip") bytes[place] = (bytes[place] as number) ^ (1 << bit);
          if (kind === "set") bytes[place] = bit;
          if (kind === "drop") bytes = Buffer.concat([bytes.subarray(0, place), bytes.subarray(place + bit)]);
          if (kind === "repeat") {
            bytes = Buffer.concat([bytes.subarray(0, place), bytes.subarray(Math.max(0, place - bit))]);
          }
        }
        const places = cuts.map((cut) => Math.floor(cut * bytes.length)).sort((a, b) => a - b);
        const sent = [0, ...places].map((start, index) => bytes.subarray(start, places[index] ?? bytes.length));
        await play(served.path, sent, abrupt);
        expect((await control.read(0, 512)).error).toBe(0);
      }),
      { numRuns: Math.ceil(RUNS / 3) },
    );
    await until(() => served.server.connections === 1);
    expect(served.server.bytesInFlight).toBe(0);
    expect(served.server.counters.requestsInFlight).toBe(0);
  }, 3_600_000);
});
