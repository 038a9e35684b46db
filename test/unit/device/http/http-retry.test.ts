// Servers that are busy, and connections that break: when a request is sent again, and when no more.
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../../src/base/errors.ts";
import { HastyClock } from "../../../support/hasty-clock.ts";
import { httpServer, openHttp, type Reply, readAll, readPart, status } from "../../../support/http-server.ts";
import { ManualClock } from "../../../support/manual-clock.ts";
import { until } from "../../../support/nbd-server.ts";

const SILENCE_MS = 60_000;

/** A clock by which silence lasts as long as a few turns of the event loop, once that is wanted. */
class SilenceClock extends HastyClock {
  readonly #waiting = new Set<() => void>();
  #passedMs = 0;

  override now(): number {
    return super.now() + this.#passedMs;
  }

  override sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (ms !== SILENCE_MS) return super.sleep(ms, signal);
    return new Promise((resolve) => {
      this.#waiting.add(resolve);
      signal?.addEventListener("abort", () => resolve(), { once: true });
    });
  }

  startPassing(): Disposable {
    const timer = setInterval(() => {
      this.#passedMs += SILENCE_MS;
      const waiting = [...this.#waiting];
      this.#waiting.clear();
      for (const resolve of waiting) resolve();
    }, 20);
    return { [Symbol.dispose]: () => clearInterval(timer) };
  }
}

const DATE = "Wed, 01 Jan 2025 00:00:00 GMT";

describe("A request", () => {
  test.each([408, 425, 429, 500, 502, 503, 504, 522])("answered with %i is sent again after a pause", async (code) => {
    await using server = await httpServer();
    const { device, clock } = await openHttp(server);
    await using _ = device;
    server.next(status(code), status(code), status(code));
    expect((await readPart(device, 0, 16)).toString()).toBe("0123456789abcdef");
    expect(clock.pauses).toEqual([75, 150, 300]); // doubled, each spread from one half to the whole: here three quarters
  });

  test.each([
    ["7", 7_000],
    ["0", 75],
    ["Wed, 01 Jan 2025 00:00:09 GMT", 9_000], // from the server's own Date, whatever the clock here says
    ["Wed, 01 Jan 2020 00:00:00 GMT", 75],
    ["soon", 75],
    ["-5", 75],
    ["1e1", 75],
  ])("is sent again when Retry-After says so: %s", async (retryAfter, pauseMs) => {
    await using server = await httpServer();
    const { device, clock } = await openHttp(server);
    await using _ = device;
    server.next(status(503, { "retry-after": retryAfter, date: DATE }));
    await readPart(device, 0, 16);
    expect(clock.pauses[0]).toBe(pauseMs);
  });

  test("holds back the others for as long as the server asks", async () => {
    await using server = await httpServer();
    const sleeps: number[] = [];
    const clock = new (class extends ManualClock {
      override sleep(ms: number, signal?: AbortSignal): Promise<void> {
        sleeps.push(ms);
        return super.sleep(ms, signal);
      }
    })();
    const { device } = await openHttp(server, { clock });
    await using _ = device;
    server.next(status(503, { "retry-after": "20" }));
    const first = readPart(device, 0, 16);
    await until(() => sleeps.includes(20_000));
    const second = readPart(device, 16, 16);
    await clock.advance(19_999);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(server.requests).toHaveLength(2);
    await clock.advance(1);
    await Promise.all([first, second]);
    expect(server.requests).toHaveLength(4);
  });

  test.each(["61", "999999999", "Wed, 01 Jan 2030 00:00:00 GMT"])(
    "that is to wait longer than it has time (%s) fails at once",
    async (retryAfter) => {
      await using server = await httpServer();
      const { device, clock } = await openHttp(server);
      await using _ = device;
      server.next(status(429, { "retry-after": retryAfter, date: DATE }));
      await expect(readPart(device, 0, 16)).rejects.toThrow(/HTTP 429 Too Many Requests, and asks to wait \d+ s$/);
      expect(clock.pauses).toEqual([]);
      await readPart(device, 0, 16); // the next one is not held back
    },
  );

  test("that gets nothing for the time it has fails, and the device can be read as soon as the server is back", async () => {
    await using server = await httpServer();
    const notes: string[] = [];
    const options = { reconnectTimeoutMs: 60_000, onNote: (line: string) => void notes.push(line) };
    const { device, clock } = await openHttp(server, options);
    await using _ = device;
    server.always(status(503));
    const failed = await readPart(device, 0, 16).catch((error) => error);
    expect(failed).toBeInstanceOf(DeviceError);
    expect(failed.message).toMatch(/: HTTP 503 Service Unavailable \(tried \d+ times\)$/);
    expect(failed).toMatchObject({ errno: "EAGAIN", offset: 0, length: 16, away: true });
    expect(clock.now()).toBeGreaterThan(50_000);
    expect(clock.now()).toBeLessThanOrEqual(60_000);
    expect(Math.max(...clock.pauses)).toBeLessThanOrEqual(5_000);
    server.always(undefined);
    await readPart(device, 0, 16);
    expect(notes).toEqual([
      `"${server.url}" cannot be read at the moment: HTTP 503 Service Unavailable; trying again`,
      `"${server.url}" can be read again`,
    ]);
    expect(device.incarnation).toBe(0); // the connection was never lost
  });

  test.each<[string, Reply]>([
    ["before the head", (_request, response) => void response.destroy()],
    [
      "in the body",
      (request, response) => {
        const [, first = "0", last = "0"] = /(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
        const length = Number(last) - Number(first) + 1;
        const fields = { "content-range": `bytes ${first}-${last}/16000`, "content-length": length, etag: '"one"' };
        response.writeHead(206, fields);
        const half = Buffer.from("0123456789abcdef".repeat(1000)).subarray(Number(first), Number(first) + 5_000);
        response.write(half, () => response.destroy());
      },
    ],
  ])("whose connection breaks %s goes on where it was cut", async (name, reply) => {
    await using server = await httpServer();
    const notes: string[] = [];
    const { device, clock } = await openHttp(server, { onNote: (line) => void notes.push(line) });
    await using _ = device;
    server.next(reply);
    expect(await readAll(device)).toEqual(server.object.content);
    expect(server.requests.at(-1)?.headers.range).toBe(name === "in the body" ? "bytes=5000-15999" : "bytes=0-15999");
    expect(clock.pauses).toEqual([75]);
    expect(device.incarnation).toBe(1);
    expect(notes).toEqual([]); // once is no outage
  });

  test("that gets further with every connection goes on for as long as it takes", async () => {
    const content = Buffer.alloc(2 ** 20, "go on ");
    await using server = await httpServer({ content });
    const { device, clock } = await openHttp(server, { reconnectTimeoutMs: 1_000 });
    await using _ = device;
    server.always((request, response) => {
      const [, first = "0", last = "0"] = /(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
      const length = Number(last) - Number(first) + 1;
      const range = `bytes ${first}-${last}/${content.length}`;
      response.writeHead(206, { "content-range": range, "content-length": length, etag: '"one"' });
      const part = content.subarray(Number(first), Math.min(Number(first) + 20_000, Number(last) + 1));
      response.write(part, () => response.destroy());
    });
    expect(Buffer.compare(await readAll(device), content)).toBe(0);
    expect(clock.now()).toBeGreaterThan(1_000);
  });

  test("that gets one byte with every connection is given up", async () => {
    await using server = await httpServer();
    const { device } = await openHttp(server);
    await using _ = device;
    server.always((request, response) => {
      const [, first = "0"] = /(\d+)-/.exec(request.headers.range ?? "") ?? [];
      const fields = { "content-range": `bytes ${first}-15999/16000`, "content-length": 16_000 - Number(first) };
      response.writeHead(206, { ...fields, etag: '"one"' });
      response.write("x", () => response.destroy());
    });
    await expect(readAll(device)).rejects.toThrow(/tried \d+ times/);
    expect(server.requests.length).toBeLessThan(100);
  });

  test("for bytes that the server never gets beyond fails soon: the server is there, they are what is bad", async () => {
    const content = Buffer.alloc(100_000, 7);
    await using server = await httpServer({ content });
    const { device, clock } = await openHttp(server);
    await using _ = device;
    // As nginx does when its own disk has a bad block at 50,000.
    server.always((request, response, serve) => {
      const [, first = "0", last = "0"] = /(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
      if (Number(last) < 50_000 || Number(first) > 50_511) return serve();
      const length = Number(last) - Number(first) + 1;
      const range = `bytes ${first}-${last}/${content.length}`;
      response.writeHead(206, { "content-range": range, "content-length": length, etag: '"one"' });
      response.write(content.subarray(Number(first), Math.max(50_000, Number(first))), () => response.destroy());
    });
    await expect(readAll(device)).rejects.toMatchObject({ errno: "EIO", away: false, offset: 0, length: 100_000 });
    expect(clock.now()).toBeLessThan(20_000);
    expect(Buffer.compare(await readPart(device, 0, 50_000), content.subarray(0, 50_000))).toBe(0);
    await readPart(device, 50_512, 1000);
  });

  test.each([
    [500, "EIO"],
    [503, "EAGAIN"],
  ])(
    "that is answered with %i for too long, as all others are, tells that the server as a whole is away",
    async (code, errno) => {
      await using server = await httpServer();
      const { device, clock } = await openHttp(server);
      await using _ = device;
      server.always(status(code));
      await expect(readPart(device, 0, 16)).rejects.toMatchObject({ errno, away: true });
      expect(clock.now()).toBeLessThanOrEqual(60_000);
    },
  );

  /** Cuts every body in half, and serves the first half whole. */
  const half: Reply = (request, response) => {
    const [, first = "0", last = "0"] = /(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
    const length = Number(last) - Number(first) + 1;
    const fields = { "content-range": `bytes ${first}-${last}/16000`, "content-length": length, etag: '"one"' };
    response.writeHead(206, fields);
    const part = Buffer.from("0123456789abcdef".repeat(1000)).subarray(
      Number(first),
      Number(first) + Math.floor(length / 2),
    );
    if (part.length === 0) response.destroy();
    else response.write(part, () => response.destroy());
  };
  const encoded: Reply = (_request, _response, serve) => serve({ "content-encoding": "gzip" });

  test.each<[string, Reply, string]>([
    ["cut in half", half, "EPROTO"],
    ["encoded", encoded, "EPROTO"],
    ["refused for the moment", status(500), "EIO"],
  ])("that is %s is an error of those bytes, unless all others are too", async (_name, reply, errno) => {
    await using server = await httpServer();
    const notes: string[] = [];
    const { device, clock } = await openHttp(server, { onNote: (line) => void notes.push(line) });
    await using _ = device;
    const isBad = (range: string) => Number(/=(\d+)-/.exec(range)?.[1] ?? 0) < 5_000;
    server.always((request, response, serve) =>
      isBad(request.headers.range ?? "") ? reply(request, response, serve) : serve(),
    );
    await expect(readPart(device, 0, 4_096)).rejects.toMatchObject({ errno: "EIO", away: false });
    const before = clock.now();
    server.always(reply);
    await expect(readPart(device, 0, 4_096)).rejects.toMatchObject({ errno, away: true, offset: 0, length: 4_096 });
    expect(clock.now() - before).toBeLessThanOrEqual(60_000);
    expect(notes[0]).toMatch(/cannot be read at the moment: .*; trying again$/);
  });

  test("of which each reply falls silent half-way is given up after two times, however much has come", async () => {
    const content = Buffer.alloc(2 ** 20, "silent");
    await using server = await httpServer({ content });
    const notes: string[] = [];
    const clock = new SilenceClock();
    const onNote = (line: string) => void notes.push(line);
    const { device } = await openHttp(server, { clock, requestTimeoutMs: SILENCE_MS, onNote });
    await using _ = device;
    using __ = clock.startPassing();
    server.always((request, response) => {
      const [, first = "0", last = "0"] = /(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
      const length = Number(last) - Number(first) + 1;
      const range = `bytes ${first}-${last}/${content.length}`;
      response.writeHead(206, { "content-range": range, "content-length": length, etag: '"one"' });
      response.write(content.subarray(Number(first), Number(first) + Math.floor(length / 2)));
    });
    await expect(readAll(device)).rejects.toMatchObject({ away: true });
    expect(server.requests.length).toBeLessThan(6);
    expect(notes).toEqual([expect.stringContaining("the server does not answer")]);
  });

  test("to a server that fails again and again tells so once a minute", async () => {
    await using server = await httpServer();
    const notes: string[] = [];
    const { device, clock } = await openHttp(server, { onNote: (line) => void notes.push(line) });
    await using _ = device;
    while (clock.now() < 100_000) {
      server.next(status(503), status(503), status(503), status(503), status(503));
      await readPart(device, 0, 16);
    }
    expect(notes).toHaveLength(4); // it goes, it is back: two times
  });

  test("to a server that is gone for too long fails, and says that it is away", async () => {
    const server = await httpServer();
    const { device } = await openHttp(server);
    await using _ = device;
    await server[Symbol.asyncDispose]();
    await expect(readPart(device, 0, 16)).rejects.toMatchObject({ errno: "ECONNREFUSED", away: true });
  });

  test("survives that the server is gone for a while", async () => {
    await using server = await httpServer();
    const notes: string[] = [];
    const { device, clock } = await openHttp(server, { onNote: (line) => void notes.push(line) });
    await using _ = device;
    const { port, server: listener } = server;
    listener.closeAllConnections();
    await new Promise((resolve) => listener.close(resolve));
    const reading = readAll(device);
    while (clock.pauses.length < 5) await new Promise((resolve) => setTimeout(resolve, 1));
    await new Promise<void>((resolve) => listener.listen(port, "127.0.0.1", resolve));
    expect(await reading).toEqual(server.object.content);
    expect(device.incarnation).toBe(1);
    expect(notes).toHaveLength(2);
    expect(notes[0]).toMatch(/cannot be read at the moment: .*; trying again$/);
  });
});
