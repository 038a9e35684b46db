// Reading: what is data, what never is, and what a server that changes its mind is told.
import { describe, expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../../src/base/errors.ts";
import { httpServer, openHttp, type Reply, readAll, readPart, status } from "../../../support/http-server.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { until } from "../../../support/nbd-server.ts";
import { seededRandom } from "../../../support/random.ts";

/** Bytes that differ from place to place. */
function noise(length: number): Buffer {
  const random = seededRandom(length);
  return Buffer.from(Array.from({ length }, () => random.integer(0, 255)));
}

describe("HttpDevice.read()", () => {
  test("gets exactly the bytes asked for, under the condition that the object is the same", async () => {
    await using server = await httpServer({ content: noise(20_000) });
    const { device } = await openHttp(server);
    await using _ = device;
    expect(await readPart(device, 5_001, 777)).toEqual(server.object.content.subarray(5_001, 5_778));
    expect(server.requests.at(-1)?.headers).toMatchObject({
      range: "bytes=5001-5777",
      "if-match": '"one"',
      "if-range": '"one"',
      "accept-encoding": "identity",
    });
    expect(await readAll(device)).toEqual(server.object.content);
  });

  test("a read of many MiB is split, and its parts are got over several connections", async () => {
    const content = Buffer.alloc(13 * 2 ** 20 + 7);
    for (let at = 0; at < content.length; at += 4099) content.writeUInt32LE(at, Math.min(at, content.length - 4));
    await using server = await httpServer({ content });
    const sockets = new Set<unknown>();
    server.server.on("connection", (socket) => sockets.add(socket));
    const { device } = await openHttp(server);
    await using _ = device;
    expect(Buffer.compare(await readAll(device), content)).toBe(0);
    const parts = server.requests.slice(1).map(({ headers }) => headers.range);
    expect(parts).toHaveLength(4);
    expect(sockets.size).toBeGreaterThan(1);
    for (const { headers } of server.requests.slice(1)) {
      const [first = 0, last = 0] =
        /(\d+)-(\d+)/
          .exec(headers.range ?? "")
          ?.slice(1)
          .map(Number) ?? [];
      expect(last - first + 1).toBeLessThanOrEqual(device.mostAtOnce);
    }
  });

  test("no more requests are under way than there are connections", async () => {
    await using server = await httpServer({ content: noise(10_000) });
    const waiting: (() => void)[] = [];
    let most = 0;
    let left = 20;
    const { device } = await openHttp(server, { connections: 3 });
    await using _ = device;
    server.always((_request, _response, serve) => {
      waiting.push(serve);
      most = Math.max(most, waiting.length);
      if (waiting.length < Math.min(3, left)) return;
      // Time for one too many to arrive.
      setTimeout(() => {
        left -= waiting.length;
        for (const answer of waiting.splice(0)) answer();
      }, 2);
    });
    const reads = Array.from({ length: 20 }, (_each, index) => readPart(device, index * 500, 500));
    expect(Buffer.concat(await Promise.all(reads))).toEqual(server.object.content);
    expect(most).toBe(3);
  });

  test.each<[string, Reply, string]>([
    ["another entity tag", (_q, _r, serve) => serve({ etag: '"two"' }), 'its entity tag is "two", not "one"'],
    ["412", status(412), 'it is not the one with the entity tag "one" any more'],
    [
      "a larger total",
      (_q, _r, serve) => serve({ "content-range": "bytes 0-99/16001" }),
      "its size is 16001 bytes, not 16000",
    ],
    [
      "the whole of another state, by If-Range",
      (_q, response) => void response.writeHead(200, { etag: '"two"', "content-length": "16000" }).end(),
      'its entity tag is "two", not "one"',
    ],
    [
      "the whole of another size",
      (_q, response) => void response.writeHead(200, { "content-length": "5" }).end("12345"),
      "its size is 5 bytes, not 16000",
    ],
    ["416 with another total", status(416, { "content-range": "bytes */50" }), "its size is 50 bytes, not 16000"],
  ])("%s is a change, and final", async (_name, reply, text) => {
    await using server = await httpServer();
    const { device } = await openHttp(server);
    await using _ = device;
    server.next(reply);
    const failed = await readPart(device, 0, 100).catch((error) => error);
    expect(failed).toBeInstanceOf(ChangedError);
    expect(failed).toMatchObject({
      errno: "ESTALE",
      offset: 0,
      length: 100,
      difference: expect.stringContaining(text),
    });
    expect(failed.message).toBe(
      `Cannot read 100 bytes at 0 from "${server.url}": it has changed: ${failed.difference}`,
    );
    expect(device.changed).toBe(failed.difference);
    const asked = server.requests.length;
    await expect(readPart(device, 500, 10)).rejects.toBeInstanceOf(ChangedError);
    expect(server.requests).toHaveLength(asked); // nobody is asked any more
  });

  test("without a strong entity tag the time of change is the condition", async () => {
    await using server = await httpServer({ etag: 'W/"one"' });
    const { device } = await openHttp(server);
    await using _ = device;
    await readPart(device, 0, 10);
    const { headers } = server.requests.at(-1) as (typeof server.requests)[0];
    expect(headers["if-unmodified-since"]).toBe("Wed, 01 Jan 2025 00:00:00 GMT");
    expect(headers).not.toHaveProperty("if-match");
    server.object.lastModified = "Thu, 02 Jan 2025 00:00:00 GMT";
    await expect(readPart(device, 0, 10)).rejects.toBeInstanceOf(ChangedError);
  });

  test.each<[string, Record<string, string>, string]>([
    ["a later time", { "last-modified": "Thu, 02 Jan 2025 00:00:00 GMT" }, "it was modified at Thu, 02 Jan 2025"],
    ["another weak tag", { etag: 'W/"two"' }, 'its entity tag is "two"'],
  ])("%s in the reply of a server that ignores conditions is a change", async (_name, fields, text) => {
    await using server = await httpServer({ etag: 'W/"one"' });
    const { device } = await openHttp(server);
    await using _ = device;
    server.always((request, _response, serve) => {
      delete request.headers["if-unmodified-since"];
      serve(fields);
    });
    await expect(readPart(device, 0, 10)).rejects.toMatchObject({ difference: expect.stringContaining(text) });
  });

  test("a server that tells nothing to know it again by is asked without a condition; its size is watched", async () => {
    await using server = await httpServer({ etag: undefined, lastModified: undefined });
    const { device } = await openHttp(server);
    await using _ = device;
    await readPart(device, 0, 10);
    expect(Object.keys(server.requests.at(-1)?.headers ?? {}).filter((name) => name.startsWith("if-"))).toEqual([]);
    server.object.content = Buffer.alloc(17_000);
    await expect(readPart(device, 0, 10)).rejects.toBeInstanceOf(ChangedError);
  });

  test.each<[string, Reply, string]>([
    ["the whole in place of the part", (_q, response) => void response.writeHead(200).end("all"), "the whole"],
    [
      "other bytes",
      (_q, _r, serve) => serve({ "content-range": "bytes 1-100/16000" }),
      "sends bytes 1 to 100, not 0 to",
    ],
    [
      "a longer range",
      (_q, _r, serve) => serve({ "content-range": "bytes 0-100/16000" }),
      "sends bytes 0 to 100, not 0",
    ],
    [
      "a tiny part of it",
      (_q, _r, serve) => serve({ "content-range": "bytes 0-1/16000" }),
      "sends bytes 0 to 1, not 0",
    ],
    ["a part that it does not name", (_q, _r, serve) => serve({ "content-range": undefined }), "without saying which"],
    ["a part of what it does not name", (_q, _r, serve) => serve({ etag: undefined }), "it has no entity tag"],
    ["compressed content", (_q, _r, serve) => serve({ "content-encoding": "br" }), "encoded (br)"],
    [
      "several ranges",
      (_q, _r, serve) => serve({ "content-type": "Multipart/Byteranges; boundary=a" }),
      "several ranges",
    ],
    [
      "a length that is not the range's",
      (_q, response) => {
        const fields = { "content-range": "bytes 0-99/16000", "content-length": "50", etag: '"one"' };
        response.writeHead(206, fields).end(Buffer.alloc(50));
      },
      "announces 50 bytes for 100",
    ],
    [
      "a body that ends too early, and says that it is whole",
      (_q, response) => {
        const fields = { "content-range": "bytes 0-99/16000", etag: '"one"' };
        response.writeHead(206, fields).end(Buffer.alloc(50, 1)); // chunked: no length
      },
      "sends 50 bytes where it announced 100",
    ],
    [
      "a body that is too long",
      (_q, response) => {
        const fields = { "content-range": "bytes 0-99/16000", etag: '"one"' };
        response.writeHead(206, fields).end(Buffer.alloc(101, 1));
      },
      "more than it announces",
    ],
    [
      "a byte more, after all has come",
      (_q, response) => {
        const fields = { "content-range": "bytes 0-99/16000", etag: '"one"' };
        response.writeHead(206, fields).write(Buffer.alloc(100, 1), () => setImmediate(() => response.end("x")));
      },
      "more than it announces",
    ],
  ])("%s is not taken for data; a server that goes on so is given up", async (_name, reply, text) => {
    await using server = await httpServer();
    const { device, clock } = await openHttp(server);
    await using _ = device;
    server.next(reply);
    expect(await readPart(device, 0, 100)).toEqual(server.object.content.subarray(0, 100)); // the second reply is good
    server.always(reply);
    const asked = server.requests.length;
    const failed = await readPart(device, 0, 100).catch((error) => error);
    expect(failed).toBeInstanceOf(DeviceError);
    expect(failed).not.toBeInstanceOf(ChangedError);
    expect(failed.message).toContain(text);
    expect(failed).toMatchObject({ errno: "EPROTO", away: true, offset: 0, length: 100 });
    expect(server.requests.length - asked).toBeLessThanOrEqual(9); // two of them elsewhere, to see whether that fares better
    expect(clock.now()).toBeLessThan(60_000);
  });

  test("a part that ends earlier than asked for is taken, and the rest asked for", async () => {
    const content = noise(200_000);
    await using server = await httpServer({ content });
    const { device, clock } = await openHttp(server);
    await using _ = device;
    server.always((request, _response, serve) => {
      const [first = 0, last = 0] =
        /(\d+)-(\d+)/
          .exec(request.headers.range ?? "")
          ?.slice(1)
          .map(Number) ?? [];
      request.headers.range = `bytes=${first}-${Math.min(last, first + 65_535)}`;
      serve();
    });
    expect(Buffer.compare(await readAll(device), content)).toBe(0);
    expect(server.requests).toHaveLength(1 + 4);
    expect(clock.pauses).toEqual([]);
  });

  test("a part that is longer than it says is not taken, though there is room for it", async () => {
    const content = noise(100_000);
    await using server = await httpServer({ content });
    const { device, clock } = await openHttp(server);
    await using _ = device;
    server.next((_request, response) => {
      response.writeHead(206, { "content-range": "bytes 0-65535/100000", etag: '"one"' });
      response.end(Buffer.alloc(70_000, 1));
    });
    expect(Buffer.compare(await readAll(device), content)).toBe(0);
    expect(clock.pauses).toEqual([75]);
    expect(server.requests.at(-1)?.headers.range).toBe("bytes=0-99999");
  });

  test("a read of several parts, one of which fails, ends when all have let go of the buffer", async () => {
    await using server = await httpServer({ content: Buffer.alloc(8 * 2 ** 20, 7) });
    const { device } = await openHttp(server);
    await using _ = device;
    let late: (() => void) | undefined;
    server.always((request, response, serve) => {
      if (request.headers.range?.startsWith("bytes=0-")) status(404)(request, response, serve);
      else late = serve;
    });
    const buffer = Buffer.alloc(device.size);
    let hasEnded = false;
    const reading = device.read(0, buffer).finally(() => (hasEnded = true));
    reading.catch(() => {});
    await until(() => late !== undefined && server.requests.length === 3);
    for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    expect(hasEnded).toBe(false);
    late?.();
    await expect(reading).rejects.toThrow("HTTP 404");
    expect(buffer.at(-1)).toBe(7);
  });

  test.each([401, 403, 404, 410, 416, 418])("%i is final at once, and the device can still be read", async (code) => {
    await using server = await httpServer();
    const { device } = await openHttp(server);
    await using _ = device;
    server.next(status(code));
    await expect(readPart(device, 16, 16)).rejects.toThrow(
      `Cannot read 16 bytes at 16 from "${server.url}": HTTP ${code}`,
    );
    expect(server.requests).toHaveLength(2);
    expect(device.changed).toBeUndefined();
    expect((await readPart(device, 16, 16)).toString()).toBe("0123456789abcdef");
  });

  test("a reply whose text never ends does not keep the reader", async () => {
    await using server = await httpServer();
    const { device } = await openHttp(server);
    await using _ = device;
    server.next((_request, response) => {
      response.writeHead(404);
      const more = () => void (response.destroyed || response.write(Buffer.alloc(65536), () => setImmediate(more)));
      more();
    });
    await expect(readPart(device, 0, 16)).rejects.toThrow("HTTP 404");
  });

  test("a buffer belongs to the reader again once the read has failed", async () => {
    await using server = await httpServer({ content: noise(300_000) });
    const { device } = await openHttp(server);
    await using _ = device;
    let rest: (() => void) | undefined;
    server.next((_request, response) => {
      response.writeHead(206, { "content-range": "bytes 0-99999/300000", "content-length": "100000", etag: '"one"' });
      response.write(Buffer.alloc(50_000, 7));
      rest = () => response.end(Buffer.alloc(50_000, 7));
    });
    const buffer = Buffer.alloc(100_000);
    const reading = device.read(0, buffer);
    await until(() => buffer[49_999] === 7);
    const closing = device[Symbol.asyncDispose]();
    await expect(reading).rejects.toThrow(
      `Cannot read 100000 bytes at 0 from "${server.url}": it was closed meanwhile`,
    );
    buffer.fill(1);
    rest?.();
    await closing;
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(buffer.every((byte) => byte === 1)).toBe(true);
  });

  test.each<[string, (head: () => void, body: (bytes: number) => void) => void]>([
    ["before the head", () => {}],
    [
      "in the body",
      (head, body) => {
        head();
        body(50);
      },
    ],
  ])("a server that falls silent %s is asked again, from the byte that is missing", async (name, act) => {
    await using server = await httpServer();
    const clock = new ManualClock();
    const options = { clock, requestTimeoutMs: 30_000, reconnectTimeoutMs: 30_000 };
    const { device } = await openHttp(server, options);
    await using _ = device;
    let silent = 0;
    server.next((_request, response) => {
      const fields = { "content-range": "bytes 0-9999/16000", "content-length": "10000", etag: '"one"' };
      act(
        () => response.writeHead(206, fields).flushHeaders(),
        (bytes) => response.write(server.object.content.subarray(0, bytes)),
      );
      silent += 1;
    });
    const buffer = Buffer.alloc(10_000);
    const reading = device.read(0, buffer);
    await until(() => silent === 1 && (name === "before the head" || buffer[49] !== 0));
    await clock.advance(29_999);
    expect(server.requests).toHaveLength(2);
    for (let step = 0; step < 100 && server.requests.length < 3; step += 1) {
      await clock.advance(1_000);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await reading;
    expect(buffer).toEqual(server.object.content.subarray(0, 10_000));
    const from = name === "before the head" ? 0 : 50;
    expect(server.requests.at(-1)?.headers.range).toBe(`bytes=${from}-9999`);
    expect(device.incarnation).toBe(1);
  });

  test("requests of no bytes ask nobody; those outside of it are the caller's mistake", async () => {
    await using server = await httpServer();
    const { device } = await openHttp(server);
    for (const offset of [0, 1, 16_000]) await device.read(offset, new Uint8Array(0));
    expect(await device.extents(16_000, 0)).toEqual([]);
    expect(await device.extents(100, 15_900)).toEqual([{ offset: 100, length: 15_900, hole: false, zero: false }]);
    for (const [offset, length] of [
      [-1, 10],
      [15_991, 10],
      [16_001, 0],
      [0.5, 10],
      [Number.NaN, 1],
      [2 ** 53, 1],
    ] as const) {
      await expect(device.read(offset, new Uint8Array(length))).rejects.toThrow(RangeError);
      await expect(device.extents(offset, length)).rejects.toThrow(RangeError);
    }
    await expect(device.write(0, new Uint8Array(1))).rejects.toThrow(TypeError);
    await expect(device.zero(0, 1)).rejects.toThrow(TypeError);
    await expect(device.discard(0, 1)).rejects.toThrow(TypeError);
    await device.flush();
    expect(server.requests).toHaveLength(1);
    await device[Symbol.asyncDispose]();
    await device[Symbol.asyncDispose]();
    await expect(device.read(0, new Uint8Array(1))).rejects.toThrow(TypeError);
  });
});
