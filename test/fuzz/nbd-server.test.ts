// A session that goes as it should, cut off at every byte: the server has done the writes that were whole, and no part of
// another. What becomes of sessions that are mutated is in targets/nbd-servers.ts.
import { describe, expect, test } from "vitest";
import type { TlsMode } from "../../src/nbd/handshake.ts";
import { testServer, until } from "../support/nbd-server.ts";
import { ServedMemory } from "../support/served-devices.ts";
import { play, SIZE, session, WRITES } from "./targets/nbd-servers.ts";

describe.for([
  ["at once", true, "off"],
  ["later", false, "off"],
  ["at once, from a server that speaks TLS too", true, "on"],
] as [string, boolean, TlsMode][])("A session answered %s", ([, immediate, mode]) => {
  test("and cut off at any byte has done the writes that were whole, and no part of another", async () => {
    const pieces = session();
    const bytes = Buffer.concat(pieces);
    const long = pieces.slice(0, 10).reduce((sum, piece) => sum + piece.length, 0);
    const cuts: number[] = [];
    for (let cut = 0; cut <= bytes.length; cut += cut > long + 100 && cut < long + 39_900 ? 997 : 1) cuts.push(cut);
    await using served = await testServer({
      device: new ServedMemory(SIZE, { immediate }),
      tls: { mode, credentials: { kind: "psk", keyOf: () => undefined } },
      limits: { closeMs: 1000 },
    });
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
});
