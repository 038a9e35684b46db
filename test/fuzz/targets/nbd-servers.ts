/**
 * What clients send to our NBD server. However a session is mutated, the server answers or closes the connection; another client
 * that is there all the time is served, and nothing of a session is left when it is over. A message is a byte that says to
 * which server it goes and how it ends, two places at which it is cut, and the bytes.
 */
import { connect } from "node:net";
import { encodeContextQueries, encodeInfoRequest, encodeOption } from "../../../src/nbd/option-codec.ts";
import { Command, CommandFlag, InfoType, Option } from "../../../src/nbd/protocol.ts";
import { CLIENT_FLAGS, NbdClient, requestBytes } from "../../support/nbd-client.ts";
import { testServer, until } from "../../support/nbd-server.ts";
import type { SeededRandom } from "../../support/random.ts";
import { ServedMemory } from "../../support/served-devices.ts";
import { mutate } from "../mutate.ts";
import { type FuzzTarget, mustHold } from "../target.ts";

/** Of the export, bytes. */
export const SIZE = 1024 * 1024;
const HEADER = 5;
/** Answered at once, later, and by one that speaks TLS too. */
const SERVERS = 3;
/** A client that is well behaved asks after so many messages. */
const ASKED_EVERY = 8;

/** Where the session writes, and how much: the first fits in place, the second gets its own buffer. */
export const WRITES = [
  { offset: 4096, length: 48 },
  { offset: 65_536, length: 40_000 },
  { offset: 512, length: 8 },
];

/** The pieces of a session, in order, as the client sends them. */
export function session(): Buffer[] {
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
export async function play(path: string, pieces: readonly Uint8Array[], abrupt: boolean): Promise<number> {
  const socket = connect({ path, allowHalfOpen: true });
  socket.on("error", () => {}); // it may well be closed by the time we write
  const closed = new Promise((resolve) => socket.once("close", resolve));
  let heard = 0;
  socket.on("data", (data) => {
    heard += data.length;
  });
  for (const [index, piece] of pieces.entries()) {
    socket.write(piece);
    if (index < pieces.length - 1) await new Promise((resolve) => setImmediate(resolve));
  }
  if (abrupt) socket.destroySoon();
  else socket.end();
  await closed;
  return heard;
}

function generate(random: SeededRandom): { bytes: Buffer; isGood: boolean } {
  const pieces = session();
  // Pieces of the session left out, so that what comes late is reached by few bytes.
  const kept = pieces.filter((_, index) => index === 0 || !random.oneIn(3));
  const header = Buffer.from(Array.from({ length: HEADER }, () => random.integer(0, 255)));
  header[0] = random.integer(0, 2 * SERVERS - 1);
  if (random.oneIn(20)) {
    header[0] %= SERVERS; // who does not hang up hears all answers
    return { bytes: Buffer.concat([header, ...pieces]), isGood: true };
  }
  if (random.oneIn(4)) {
    return { bytes: Buffer.concat([header, mutate(Buffer.concat(kept), random, { others: pieces })]), isGood: false };
  }
  // One piece or a few: what is before them must be understood for them to be reached.
  const odds = random.integer(1, kept.length);
  const struck = kept.map((piece) => (random.oneIn(odds) ? mutate(piece, random, { others: pieces }) : piece));
  return { bytes: Buffer.concat([header, ...struck]), isGood: false };
}

/**
 * Another client reads what the device holds, wherever sessions write. Somebody who has hung up may have a write on its way: then
 * a byte is what it was before or what it is after.
 */
async function othersAreServed({ bytes }: ServedMemory, control: NbdClient): Promise<void> {
  for (const { offset, length } of [...WRITES, { offset: 0, length: 512 }, { offset: SIZE - 8192, length: 8192 }]) {
    const before = Buffer.from(bytes.subarray(offset, offset + length));
    const { error, data } = await control.read(offset, length);
    const after = bytes.subarray(offset, offset + length);
    mustHold(error === 0 && data.length === length, "another client is not served any more");
    const wrong = data.findIndex((byte, at) => byte !== before[at] && byte !== after[at]);
    mustHold(wrong < 0, `another client reads a wrong byte at ${offset + wrong}`);
  }
}

/** Sessions with our server: answered at once, later, and by one that speaks TLS too. */
export const nbdServer: FuzzTarget = {
  name: "nbd-sessions",
  weight: 30,
  mostBytes: 40 * 1024 * 1024,
  async open() {
    const servers: { served: Awaited<ReturnType<typeof testServer>>; control: NbdClient }[] = [];
    for (const [immediate, mode] of [
      [true, "off"],
      [false, "off"],
      [true, "on"],
    ] as const) {
      const served = await testServer({
        device: new ServedMemory(SIZE, { immediate }),
        tls: { mode, credentials: { kind: "psk", keyOf: () => undefined } },
        limits: { closeMs: 1000 },
      });
      servers.push({ served, control: await NbdClient.go(served) });
    }
    let messages = 0;
    return {
      generate,
      async run(message) {
        const [flags = 0, ...cuts] = message.subarray(0, HEADER);
        const { served, control } = servers[flags % SERVERS] as (typeof servers)[number];
        const bytes = message.subarray(HEADER);
        const places = [0, 1].map((at) => ((cuts[2 * at] ?? 0) * 256 + (cuts[2 * at + 1] ?? 0)) % (bytes.length + 1));
        places.sort((a, b) => a - b);
        const sent = [0, ...places].map((start, index) => bytes.subarray(start, places[index] ?? bytes.length));
        const heard = await play(served.path, sent, flags >= SERVERS);
        messages += 1;
        if (messages % ASKED_EVERY === 0) await othersAreServed(served.device, control);
        return heard > 300 ? "accepted" : "refused"; // it got beyond the handshake
      },
      async finish() {
        for (const { served } of servers) {
          await until(() => served.server.connections === 1);
          mustHold(served.server.bytesInFlight === 0, `${served.server.bytesInFlight} bytes are in flight for nobody`);
          mustHold(served.server.counters.requestsInFlight === 0, "requests are in flight for nobody");
        }
      },
      async [Symbol.asyncDispose]() {
        for (const { served, control } of servers) {
          await control[Symbol.asyncDispose]();
          await served[Symbol.asyncDispose]();
        }
      },
    };
  },
};
