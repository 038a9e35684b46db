// Large reads share one buffer: nothing that comes later may show in what came before.

import type { AddressInfo } from "node:net";
import { createServer, type Socket } from "node:net";
import { describe, expect, test } from "vitest";
import { type Connector, RecyclingSocket, recyclingConnector } from "../../../../src/device/http/recycling-socket.ts";
import { openHttp, readAll } from "../../../support/http-server.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { seededRandom } from "../../../support/random.ts";

/** A server of bytes, connection by connection. */
async function byteServer(serve: (socket: Socket) => void) {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.setNoDelay(true).on("error", () => {}));
    serve(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    port,
    url: `http://127.0.0.1:${port}/x`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const soon = () => new Promise((resolve) => setTimeout(resolve, 2));

describe("RecyclingSocket", () => {
  test("gives all bytes in order to who takes them at once, later, or now and then", async () => {
    const random = seededRandom(5);
    const content = Buffer.from(Array.from({ length: 3_000_000 }, () => random.integer(0, 255)));
    await using server = await byteServer(async (socket) => {
      for (let at = 0; at < content.length; ) {
        const length = random.pick([1, 1000, 32_768, 32_769, 100_000, 500_000]);
        socket.write(content.subarray(at, at + length));
        at += length;
        if (random.oneIn(3)) await soon();
      }
      socket.end();
    });
    for (const way of ["at once", "later", "now and then"]) {
      const socket = new RecyclingSocket();
      const got: Buffer[] = [];
      const take = () => {
        for (let chunk = socket.read(); chunk !== null; chunk = socket.read()) {
          got.push(Buffer.from(chunk)); // its memory is good for this turn only
          if (random.oneIn(10)) {
            const back = Buffer.from(chunk.subarray(chunk.length / 2));
            got[got.length - 1] = Buffer.from(chunk.subarray(0, chunk.length / 2));
            socket.unshift(back);
          }
        }
      };
      socket.on("readable", () => {
        if (way === "at once" || (way === "now and then" && random.oneIn(2))) take();
        else setImmediate(take);
      });
      const end = new Promise((resolve) => socket.on("end", resolve));
      socket.connect({ host: "127.0.0.1", port: server.port });
      await end;
      socket.destroy();
      expect(Buffer.compare(Buffer.concat(got), content), way).toBe(0);
    }
  });
});

test("A head is read whole, however it is parted, next to however large a body", async () => {
  const content = Buffer.alloc(2 ** 20);
  for (let at = 0; at < content.length; at += 4) content.writeUInt32LE(at, at);
  const random = seededRandom(11);
  await using server = await byteServer((socket) => {
    let asked = "";
    socket.on("data", async (data) => {
      asked += data.toString("latin1");
      const match = /range: bytes=(\d+)-(\d+)\r\n/i.exec(asked);
      if (match === null || !asked.endsWith("\r\n\r\n")) return;
      asked = "";
      const [first, last] = [Number(match[1]), Number(match[2])];
      const part = content.subarray(first, last + 1);
      const padding = Array.from(
        { length: random.integer(0, 12) },
        (_each, index) => `X-${index}: ${"p".repeat(900)}\r\n`,
      );
      const head = Buffer.from(
        `HTTP/1.1 206 Partial Content\r\n${padding.join("")}Content-Range: bytes ${first}-${last}/${content.length}\r\n` +
          `Content-Length: ${part.length}\r\nETag: "one"\r\n\r\n`,
      );
      const cut = random.integer(1, head.length - 1);
      socket.write(head.subarray(0, cut));
      await soon();
      socket.write(Buffer.concat([head.subarray(cut), part]));
    });
  });
  const { device } = await openHttp(server);
  await using _ = device;
  for (let round = 0; round < 30; round += 1) expect(Buffer.compare(await readAll(device), content)).toBe(0);
});

describe("recyclingConnector()", () => {
  /** Connects, and resolves to the error, or to null. */
  const connecting = (connector: Connector, port: number): Promise<Error | null> =>
    new Promise((resolve) => {
      const target = { hostname: "127.0.0.1", port: String(port), host: "", protocol: "http:" };
      connector(target, (error, socket) => {
        socket?.destroy();
        resolve(error);
      });
    });

  test("gives up when its time has passed, which is its clock's", async () => {
    await using server = await byteServer(() => {});
    const clock = new ManualClock();
    const connector = recyclingConnector({ timeoutMs: 1000, clock });
    const given = connecting(connector, server.port);
    void clock.advance(1000); // before the event loop turns
    expect(await given).toMatchObject({ code: "ETIMEDOUT" });
    expect(await connecting(connector, server.port)).toBeNull();
    expect(clock.sleeping).toBe(0);
  });
});
