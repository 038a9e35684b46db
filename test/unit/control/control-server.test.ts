// The server of the control socket over a target that only notes what it is told: what of a request reaches the target, what
// is answered to everything else, and that no client can hold up another.
import { readdirSync, renameSync, statSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Clock } from "../../../src/base/clock.ts";
import { BusyError, CloneError, DeviceError } from "../../../src/base/errors.ts";
import { ControlClient, ControlError } from "../../../src/control/control-client.ts";
import { ControlServer } from "../../../src/control/control-server.ts";
import type { ControlTarget } from "../../../src/control/control-target.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { eventually } from "../../support/run-clone.ts";
import { scratchDirectory } from "../../support/scratch.ts";

/** Notes every call, and answers what a test puts in. */
class FakeTarget implements ControlTarget {
  calls: unknown[] = [];
  state: object = { state: "hydrating" };
  /** Thrown by whatever is called next. */
  error: unknown;
  /** What `commit` and `finalize` wait for. */
  work: Promise<void> = Promise.resolve();

  #note(...call: unknown[]): void {
    if (this.error !== undefined) throw this.error;
    this.calls.push(call);
  }

  statusAsked = 0;

  status(): object {
    this.statusAsked++;
    if (this.error !== undefined) throw this.error;
    return this.state;
  }

  regions(most: number) {
    this.#note("regions", most);
    return { hydrated: [[0, 5]] as [number, number][], unreadable: [], complete: true };
  }

  async tune(changes: object): Promise<void> {
    this.#note("tune", changes);
  }

  async commit(): Promise<void> {
    this.#note("commit");
    await this.work;
  }

  async finalize(request: object): Promise<object> {
    this.#note("finalize", request);
    await this.work;
    return { destination: "/copy.img" };
  }

  async stop(): Promise<void> {
    this.#note("stop");
  }

  async metrics() {
    this.#note("metrics");
    return { contentType: "text/plain; version=0.0.4", text: "clone_regions 5\n" };
  }
}

/** A served target. */
async function served(options: { requestTimeoutMs?: number; clock?: Clock } = {}) {
  const place = await scratchDirectory();
  const path = join(place.path, "c.sock");
  const target = new FakeTarget();
  const server = new ControlServer(target, options);
  await server.listen(join(place.path, "t"), () => renameSync(join(place.path, "t"), path));
  return {
    directory: place.path,
    path,
    target,
    server,
    client: new ControlClient(path),
    async [Symbol.asyncDispose]() {
      await server.close();
      await place[Symbol.asyncDispose]();
    },
  };
}

/** A connection that says `text` and then nothing. */
function speak(path: string, text: string | Buffer): { socket: Socket; answer: () => string; ended: Promise<string> } {
  let heard = "";
  const socket = connect(path, () => void socket.write(text));
  const ended = new Promise<string>((resolve) => {
    socket.setEncoding("utf8").on("data", (piece: string) => {
      heard += piece;
    });
    socket.on("error", () => {});
    socket.on("close", () => resolve(heard));
  });
  return { socket, answer: () => heard, ended };
}

/** A promise, and what resolves it. */
function pending(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => {};
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}

interface Answered {
  status: number;
  headers: string;
  body: string;
}

/** Sends bytes, and resolves to the answer when the server has closed the connection. */
async function exchange(path: string, text: string | Buffer): Promise<Answered> {
  const heard = await speak(path, text).ended;
  const [headers = "", body = ""] = heard.split("\r\n\r\n");
  return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(headers)?.[1]), headers, body };
}

function post(path: string, body: string): string {
  return `POST ${path} HTTP/1.1\r\nHost: clone\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}

describe("A request to the control socket", () => {
  test("is handed to the target, and its answer comes back", async () => {
    await using clone = await served();
    const { client, target } = clone;
    expect(await client.status()).toEqual({ state: "hydrating" });
    expect(await client.regions(7)).toEqual({ hydrated: [[0, 5]], unreadable: [], complete: true });
    const changes = {
      rate: 1000,
      threshold: 0,
      batchSize: null,
      paused: true,
      minRate: null,
      hydrateOnRead: "on",
    } as const;
    expect(await client.tune(changes)).toEqual({ state: "hydrating" });
    expect(await client.finalize({ keepMetadata: true, acceptUnreadable: false, withoutSource: false })).toEqual({
      destination: "/copy.img",
    });
    for (const path of ["/pause", "/resume", "/commit"]) {
      expect(JSON.parse((await exchange(clone.path, post(path, ""))).body)).toEqual({ state: "hydrating" });
    }
    expect(JSON.parse((await exchange(clone.path, post("/finalize", "{}"))).body)).toEqual({
      destination: "/copy.img",
    });
    expect(JSON.parse((await exchange(clone.path, post("/stop", "{}"))).body)).toEqual({ stopping: true });
    expect(target.calls).toEqual([
      ["regions", 7],
      ["tune", changes],
      ["finalize", { keepMetadata: true, acceptUnreadable: false, withoutSource: false }],
      ["tune", { paused: true }],
      ["tune", { paused: false }],
      ["commit"],
      ["finalize", { keepMetadata: false, acceptUnreadable: false, withoutSource: false }],
      ["stop"],
    ]);
  });

  test("for / is told every request that there is", async () => {
    await using clone = await served();
    const { body, headers } = await exchange(clone.path, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    expect(headers).toContain("application/json");
    const { requests } = JSON.parse(body) as { requests: Record<string, string> };
    for (const request of Object.keys(requests)) {
      const [method, path] = request.split(" ");
      expect((await exchange(clone.path, `${method} ${path} HTTP/1.1\r\nHost: x\r\n\r\n`)).status, request).toBe(200);
    }
    expect(Object.keys(requests)).toHaveLength(10);
  });

  test("for metrics is answered in the target's own format, and HEAD without it", async () => {
    await using clone = await served();
    const { headers, body } = await exchange(clone.path, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    expect(headers).toContain("Content-Type: text/plain; version=0.0.4");
    expect(body).toBe("clone_regions 5\n");
    const head = await exchange(clone.path, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    expect(head).toMatchObject({ status: 200, body: "" });
  });

  test.for([
    ["usage", new CloneError("usage", "Cannot x: y", { hint: "Do z." }), 400],
    ["busy", new BusyError("Cannot x: in use"), 409],
    ["differs", new CloneError("differs", "Cannot x: it differs"), 409],
    ["failed", new DeviceError("Cannot x: EIO"), 500],
    ["damaged", new CloneError("damaged", "Cannot x: it is damaged"), 500],
  ] as const)("that the target refuses with %s is answered in the target's words", async ([code, error, status]) => {
    await using clone = await served();
    clone.target.error = error;
    const answer = await exchange(clone.path, post("/commit", ""));
    expect(answer.status).toBe(status);
    expect(JSON.parse(answer.body)).toEqual({ error: error.message, code, hint: error.hint ?? null });
    await expect(clone.client.status()).rejects.toMatchObject({ code, message: error.message, hint: error.hint });
  });

  test("that meets a fault of the program is answered too, and the next one is served", async () => {
    await using clone = await served();
    clone.target.error = new TypeError("x is not a function");
    await expect(clone.client.status()).rejects.toMatchObject({
      code: "failed",
      message: /fault of the program.*x is not/,
    });
    clone.target.error = undefined;
    expect(await clone.client.status()).toEqual({ state: "hydrating" });
  });
});

describe("A status that is waited for", () => {
  test("comes as soon as the state is another one", async () => {
    await using clone = await served();
    const asked = clone.client.nextStatus(10_000);
    await eventually("it waits", () => clone.target.statusAsked > 1);
    clone.target.state = { state: "hydrated" };
    expect(await asked).toEqual({ state: "hydrated" });
  });

  test("comes unchanged when its time is over", async () => {
    await using clone = await served();
    expect(await clone.client.nextStatus(150)).toEqual({ state: "hydrating" });
    expect(await clone.client.nextStatus(0)).toEqual({ state: "hydrating" });
  });

  test("comes as the last word of a server that closes", async () => {
    await using clone = await served();
    const asked = clone.client.nextStatus(10_000);
    await eventually("it waits", () => clone.target.statusAsked > 1);
    const closed = clone.server.close();
    expect(await asked).toEqual({ state: "hydrating" });
    await closed;
  });

  test("is not waited for without a bound", async () => {
    await using clone = await served();
    const answer = await exchange(clone.path, "GET /status?wait=10001 HTTP/1.1\r\nHost: x\r\n\r\n");
    expect(answer).toMatchObject({ status: 400, body: expect.stringContaining("wait has to be") });
  });
});

describe("A wrong request", () => {
  test.for([
    ["an unknown path", "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, /no such request/],
    ["a name of every object", "GET /__proto__ HTTP/1.1\r\nHost: x\r\n\r\n", 404, /no such request/],
    ["the wrong method", "GET /tune HTTP/1.1\r\nHost: x\r\n\r\n", 405, /another method/],
    ["a method that changes things nowhere", "DELETE /status HTTP/1.1\r\nHost: x\r\n\r\n", 405, /another method/],
    ["no JSON", post("/tune", "rate=5"), 400, /no JSON/],
    ["JSON that is no object", post("/tune", "[5]"), 400, /not a JSON object/],
    ["null", post("/pause", "null"), 400, /not a JSON object/],
    ["an unknown field", post("/tune", '{"speed":5}'), 400, /no field "speed"/],
    ["a field of every object", post("/tune", '{"__proto__":{"rate":5}}'), 400, /no field "__proto__"/],
    ["a field where there are none", post("/commit", '{"now":true}'), 400, /no field "now"/],
    ["a field of another request", post("/finalize", '{"rate":5}'), 400, /no field "rate"/],
    ["a rate of 0", post("/tune", '{"rate":0}'), 400, /"rate" has to be/],
    ["a rate that is text", post("/tune", '{"rate":"5M"}'), 400, /"rate" has to be/],
    ["a rate that is no whole number", post("/tune", '{"rate":1.5}'), 400, /"rate" has to be/],
    ["a rate beyond every number", post("/tune", '{"rate":1e400}'), 400, /"rate" has to be/],
    ["a negative threshold", post("/tune", '{"threshold":-1}'), 400, /"threshold" has to be/],
    ["a threshold of 33 bits", post("/tune", '{"threshold":4294967296}'), 400, /"threshold" has to be/],
    ["a batch of nothing", post("/tune", '{"batchSize":0}'), 400, /"batchSize" has to be/],
    ["a pause that is a number", post("/tune", '{"paused":1}'), 400, /"paused" has to be/],
    ["a policy that there is not", post("/tune", '{"hydrateOnRead":"maybe"}'), 400, /"hydrateOnRead" has to be/],
    ["too many regions", "GET /regions?most=65537 HTTP/1.1\r\nHost: x\r\n\r\n", 400, /most has to be/],
    ["no number of regions", "GET /regions?most=all HTTP/1.1\r\nHost: x\r\n\r\n", 400, /most has to be/],
    ["a body that is too long", post("/tune", " ".repeat(5000)), 413, /over 4096 bytes/],
    ["a head that is too long", `GET /${"a".repeat(10_000)} HTTP/1.1\r\nHost: x\r\n\r\n`, 431, /Too Large/],
    ["garbage", Buffer.from("\0\0\x02\x00\x00\x00IHAVEOPT\r\n\r\n"), 400, /Cannot understand/],
    ["a proxy's request", "CONNECT disk:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, /Cannot understand/],
    [
      "another protocol",
      "GET /status HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: ws\r\n\r\n",
      400,
      /Cannot/,
    ],
  ] as const)(
    "with %s is answered with an error that says so, and reaches nothing",
    async ([, text, status, message]) => {
      await using clone = await served();
      const answer = await exchange(clone.path, text);
      expect(answer.status).toBe(status);
      const body = JSON.parse(answer.body) as Record<string, unknown>;
      expect(body).toMatchObject({ code: "usage", error: expect.stringMatching(message) });
      expect(clone.target.calls).toEqual([]);
      expect(await clone.client.status()).toEqual({ state: "hydrating" });
    },
  );

  test("says which methods its path takes", async () => {
    await using clone = await served();
    expect((await exchange(clone.path, "GET /tune HTTP/1.1\r\nHost: x\r\n\r\n")).headers).toContain("Allow: POST");
  });

  test("of any bytes at all disturbs nobody", async () => {
    await using clone = await served();
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), fc.boolean(), async (bytes, isRequest) => {
        const begin = Buffer.from(isRequest ? "POST /tune HTTP/1.1\r\nHost: x\r\n" : "");
        const { socket, ended } = speak(clone.path, Buffer.concat([begin, bytes]));
        socket.end();
        await ended;
        expect(await clone.client.status()).toEqual({ state: "hydrating" });
      }),
      { numRuns: 60 },
    );
    expect(clone.target.calls).toEqual([]);
  });
});

describe("A bad client", () => {
  test("that asks and never finishes loses its connection, and others are served meanwhile", async () => {
    await using clone = await served({ requestTimeoutMs: 300 });
    const slow = ["", "GET /sta", "POST /tune HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"].map((text) =>
      speak(clone.path, text),
    );
    expect(await clone.client.status()).toEqual({ state: "hydrating" });
    await Promise.all(slow.map(({ ended }) => ended));
    expect(clone.target.calls).toEqual([]);
  });

  test("that drips its request loses its connection", async () => {
    await using clone = await served({ requestTimeoutMs: 300 });
    const { socket, ended } = speak(clone.path, "GET /status HTTP/1.1\r\n");
    const drip = setInterval(() => socket.write("X-Y: z\r\n"), 20);
    const answer = await ended;
    clearInterval(drip);
    expect(answer).toMatch(/^(HTTP\/1\.1 408 |$)/);
  });

  test("that never reads its answer loses its connection", async () => {
    await using clone = await served({ requestTimeoutMs: 200 });
    const size = 2 ** 24;
    clone.target.state = { text: "x".repeat(size) };
    const socket = connect(clone.path, () => void socket.write("GET /status HTTP/1.1\r\nHost: x\r\n\r\n"));
    socket.pause();
    const gone = new Promise((resolve) => socket.on("error", resolve));
    const polling = setInterval(() => socket.write("\r\n"), 1000); // tells that the other end is gone
    expect(await gone).toMatchObject({ code: "EPIPE" });
    clearInterval(polling);
    clone.target.state = { state: "hydrating" };
    expect(await clone.client.status()).toEqual({ state: "hydrating" });
  });

  test("that sends one request after another without waiting has only the first served", async () => {
    await using clone = await served();
    const { promise, resolve } = pending();
    clone.target.work = promise;
    const { ended } = speak(clone.path, post("/commit", "").repeat(50));
    await ended;
    expect(clone.target.calls).toEqual([["commit"]]);
    resolve();
  });

  test("that goes away while the clone works does not stop the work", async () => {
    await using clone = await served();
    const { promise, resolve } = pending();
    clone.target.work = promise;
    const { socket } = speak(clone.path, post("/finalize", "{}"));
    await eventually("it is asked to finalize", () => clone.target.calls.length === 1);
    socket.destroy();
    resolve();
    expect(await clone.client.status()).toEqual({ state: "hydrating" });
  });

  test("with a hundred connections leaves the server as it was once they are gone", async () => {
    await using clone = await served();
    const idle = Array.from({ length: 100 }, () => speak(clone.path, ""));
    await eventually("those over the bound are closed", () => idle.some(({ socket }) => socket.closed));
    for (const { socket } of idle) socket.destroy();
    await eventually(
      "it is served again",
      async () => (await clone.client.status().catch(() => undefined)) !== undefined,
    );
  });
});

// Time passes in the world, and none for the process, which was stopped. Only when its own has passed is a client late.
describe("Time in which the server was stopped", () => {
  const stopped = () => new Promise((resolve) => setTimeout(resolve, 300));

  test("does not make a client late that is about to send its request", async () => {
    const clock = new ManualClock();
    await using clone = await served({ requestTimeoutMs: 100, clock });
    const asking = speak(clone.path, "GET /status HTTP/1.1\r\n");
    await eventually("its time runs", () => clock.sleeping === 1);
    await stopped();
    asking.socket.write("Host: x\r\n\r\n");
    expect(await asking.ended).toMatch(/^HTTP\/1\.1 200 .*"state":"hydrating"/s);
    expect(clock.sleeping).toBe(0);
    const late = speak(clone.path, "GET /status HTTP/1.1\r\n");
    await eventually("its time runs", () => clock.sleeping === 1);
    await clock.advance(100);
    expect(await late.ended).toMatch(/^HTTP\/1\.1 408 /);
  });

  test("does not make a client late that is about to take its answer, or its last word", async () => {
    const clock = new ManualClock();
    await using clone = await served({ requestTimeoutMs: 100, clock });
    clone.target.state = { text: "x".repeat(2 ** 24) };
    const { socket, answer, ended } = speak(clone.path, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n");
    await eventually("the answer begins", () => answer().length > 0);
    socket.pause();
    await eventually("it waits for the client", async () => {
      await stopped();
      return clock.sleeping > 0;
    });
    const closed = clone.server.close();
    await stopped();
    socket.resume();
    expect(await ended).toHaveLength(answer().indexOf("\r\n\r\n") + 4 + JSON.stringify(clone.target.state).length + 1);
    await closed;
    expect(clock.sleeping).toBe(0);
  });

  test("does not make the server late for its client", async () => {
    const clock = new ManualClock();
    await using clone = await served();
    const { promise, resolve } = pending();
    const { createServer } = await import("node:http");
    const path = join(clone.directory, "slow.sock");
    const slow = createServer((_, response) => void promise.then(() => response.end("{}"))).listen(path);
    const client = new ControlClient(path, { timeoutMs: 100, clock });
    const asked = client.status();
    await stopped();
    resolve();
    expect(await asked).toEqual({});
    expect(clock.sleeping).toBe(0);
    slow.close();
  });
});

describe("ControlServer", () => {
  test("makes its socket for this user alone, whatever the umask", async () => {
    const umask = process.umask(0);
    try {
      await using clone = await served();
      expect(statSync(clone.path).mode % 0o1000).toBe(0o600);
      expect(process.umask()).toBe(0);
    } finally {
      process.umask(umask);
    }
  });

  test("waits for a long answer as long as the clone needs, and lets it arrive when it closes", async () => {
    await using clone = await served();
    const { promise, resolve } = pending();
    clone.target.work = promise;
    const asked = clone.client.finalize({ keepMetadata: false, acceptUnreadable: false, withoutSource: false });
    await eventually("it is asked to finalize", () => clone.target.calls.length === 1);
    const closed = clone.server.close();
    resolve();
    expect(await asked).toEqual({ destination: "/copy.img" });
    await closed;
    await expect(clone.client.status()).rejects.toBeInstanceOf(ControlError);
  });

  test("does not remove what stands at its path: that is for whoever knows whose it is", async () => {
    await using clone = await served();
    await clone.server.close();
    await clone.server.close();
    expect(readdirSync(clone.directory)).toEqual(["c.sock"]);
  });

  test("rejects where it cannot bind, and can be closed all the same", async () => {
    const server = new ControlServer(new FakeTarget());
    await expect(server.listen("/nowhere/at/all.sock", () => {})).rejects.toMatchObject({ code: "EACCES" });
    await server.close();
  });
});

describe("ControlClient", () => {
  test("says that nobody is there, whether there is a leftover or nothing", async () => {
    await using clone = await served();
    await clone.server.close();
    await expect(clone.client.status()).rejects.toMatchObject({ reason: "gone", code: "failed" });
    await expect(new ControlClient("/nowhere.sock").status()).rejects.toMatchObject({ reason: "gone" });
  });

  test("gives up on a server that does not answer", async () => {
    await using clone = await served();
    const { createServer } = await import("node:net");
    const path = join(clone.directory, "mute.sock");
    const mute = createServer(() => {}).listen(path);
    const clock = new ManualClock();
    const asked = new ControlClient(path, { timeoutMs: 50, clock }).status();
    const refused = expect(asked).rejects.toMatchObject({ reason: "silent", message: /no answer in 50 ms$/ });
    await clock.advance(50);
    await refused;
    mute.close();
  });

  test("does not believe an answer that is none", async () => {
    await using clone = await served();
    const { createServer } = await import("node:http");
    const path = join(clone.directory, "web.sock");
    const web = createServer((_, response) => response.end("<html>")).listen(path);
    await expect(new ControlClient(path).status()).rejects.toMatchObject({ reason: "silent" });
    web.close();
  });

  test("stops waiting when it is told to, and throws what it is told", async () => {
    await using clone = await served();
    clone.target.work = new Promise(() => {});
    const controller = new AbortController();
    const asked = clone.client.finalize(
      { keepMetadata: false, acceptUnreadable: false, withoutSource: false },
      controller.signal,
    );
    await eventually("it is asked to finalize", () => clone.target.calls.length === 1);
    controller.abort(new Error("enough"));
    await expect(asked).rejects.toThrow("enough");
  });
});

// An error that nobody listens for ends the process: Vitest reports it as its own.
test.for([
  ["a proxy's request", "CONNECT disk:80 HTTP/1.1\r\nHost: x\r\n\r\n"],
  ["an upgrade", "GET /status HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: ws\r\n\r\n"],
  ["no HTTP", "x\r\n\r\n"],
] as const)(
  "A client that hangs up on %s ends nothing but its connection (fuzz, control-requests)",
  async ([, text]) => {
    await using place = await served();
    for (let client = 0; client < 20; client++) {
      const socket = connect(place.path, () => {
        socket.write(text);
        socket.destroySoon();
      });
      socket.on("error", () => {});
      await new Promise<void>((resolve) => socket.on("close", () => resolve()));
    }
    expect(await place.client.status()).toEqual({ state: "hydrating" });
  },
);
