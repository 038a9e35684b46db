// The one thing here that Node does not document is that a handle can be given to a new socket. This fails where a new
// release of Node no longer allows it; the server would go on, only slower, with `data` events.
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { expect, test } from "vitest";
import { adoptSocket } from "../../../src/nbd/adopt-socket.ts";
import { scratchDirectory } from "../../support/scratch.ts";

test("adoptSocket() reads into our buffers, stops and goes on when told to, and ends as any socket", async () => {
  await using directory = await scratchDirectory();
  const path = join(directory.path, "socket");
  const buffers = [Buffer.alloc(4), Buffer.alloc(8)];
  const reads: [string, boolean][] = [];
  let next = 0;
  const target = {
    next: () => buffers[next++ % 2] as Buffer,
    received(count: number, where: Uint8Array) {
      reads.push([Buffer.from(where.subarray(0, count)).toString(), where === buffers[reads.length % 2]]);
      return reads.length !== 2;
    },
  };
  let adopted: Socket | undefined;
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
    adopted = adoptSocket(socket, target);
  });
  server.listen(path);
  await once(server, "listening");
  const client = connect(path);
  const connections = await new Promise((resolve) => {
    server.once("connection", () => setImmediate(() => server.getConnections((_error, count) => resolve(count))));
  });
  expect(connections).toBe(0); // its server has let go of it
  client.write("abcdefghijklmnop");
  while (reads.length < 2) await new Promise((resolve) => setImmediate(resolve));
  await new Promise((resolve) => setTimeout(resolve, 5));
  expect(reads).toEqual([
    ["abcd", true],
    ["efghijkl", true],
  ]);
  adopted?.resume();
  while (reads.length < 3) await new Promise((resolve) => setImmediate(resolve));
  expect(reads[2]).toEqual(["mnop", true]);
  const [ended, closed] = [once(adopted as Socket, "end"), once(adopted as Socket, "close")];
  client.end();
  await ended;
  adopted?.end("bye");
  expect(String((await once(client, "data"))[0])).toBe("bye");
  await closed;
  server.close();
});
