/**
 * The control API: raw bytes to its server, and raw answers to its client. Whatever is sent, what reaches the clone is what may
 * reach it, the answer is HTTP, and others are served.
 */
import { renameSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { ControlClient } from "../../../src/control/control-client.ts";
import { ControlServer } from "../../../src/control/control-server.ts";
import type { ControlTarget, Tuning } from "../../../src/control/control-target.ts";
import { type FinalizeAsked, parseTuning } from "../../../src/control/tuning.ts";
import type { SeededRandom } from "../../support/random.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { mutate } from "../mutate.ts";
import { type FuzzTarget, mustHold, outcomeOfAsync, readCorpus } from "../target.ts";

/** A clone that checks what it is asked. */
class StrictTarget implements ControlTarget {
  #asked = 0;

  /** Another one each time, so that nobody waits for a change. */
  status(): object {
    this.#asked += 1;
    return { state: `number ${this.#asked}` };
  }

  regions(most: number) {
    mustHold(Number.isInteger(most) && most >= 1 && most <= 65_536, `${most} ranges`);
    return { hydrated: [[0, 5]] as [number, number][], unreadable: [], complete: true };
  }

  async tune(changes: Tuning): Promise<void> {
    parseTuning(JSON.parse(JSON.stringify(changes)));
  }

  async commit(): Promise<void> {}

  async finalize(request: FinalizeAsked): Promise<object> {
    const { keepMetadata, acceptUnreadable, withoutSource, ...more } = request;
    const isRight = [keepMetadata, acceptUnreadable, withoutSource].every((value) => typeof value === "boolean");
    mustHold(isRight && Object.keys(more).length === 0, "finalize was asked for what is not there");
    return {};
  }

  async stop(): Promise<void> {}

  async metrics() {
    return { contentType: "text/plain; version=0.0.4", text: "clone_regions 5\n" };
  }
}

/** Requests that the server has to answer, each with bodies that it has to take. */
const GOOD: readonly [line: string, bodies: readonly string[]][] = [
  ...["/", "/status", "/status?wait=1", "/regions", "/regions?most=5", "/metrics"].map((path): [string, string[]] => [
    `GET ${path}`,
    [""],
  ]),
  ["POST /tune", ['{"rate":1048576,"minRate":0,"threshold":8,"batchSize":1,"paused":false}', '{"paused":true}']],
  ["POST /pause", ["", "{}"]],
  ["POST /resume", ["", "{}"]],
  ["POST /commit", ["", "{}"]],
  [
    "POST /finalize",
    ["", '{"keepMetadata":true,"acceptUnreadable":false}', '{"acceptUnreadable":true,"withoutSource":true}'],
  ],
  ["POST /stop", ["", "{}"]],
];

function goodRequest(random: SeededRandom): string {
  const [line, bodies] = random.pick(GOOD);
  const body = random.pick(bodies);
  const isChunked = body !== "" && random.oneIn(2);
  const framing = isChunked ? "Transfer-Encoding: chunked" : `Content-Length: ${body.length}`;
  const sent = isChunked ? `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n` : body;
  const more = random.pick(["", "Expect: 100-continue\r\n", "Connection: keep-alive\r\n"]);
  return `${line} HTTP/1.1\r\nHost: clone\r\n${framing}\r\n${more}\r\n${sent}`;
}

/** A request of any kind, which may well be refused. */
function request(random: SeededRandom, bodies: readonly Buffer[]): string {
  const path = random.pick([
    ...["/", "/status", "/status?wait=1", "/regions?most=5", "/metrics", "/tune", "/pause", "/resume", "/commit"],
    ...["/finalize", "/stop", "/nothing", "http://clone/status", "//x/status", "*", "/status?most=1&most=2"],
  ]);
  const isPost = /^\/(tune|pause|resume|commit|finalize|stop)/.test(path);
  const method = random.oneIn(6)
    ? random.pick(["HEAD", "PUT", "OPTIONS", "DELETE", "CONNECT", "get"])
    : isPost
      ? "POST"
      : "GET";
  const body = isPost && random.oneIn(2) ? random.pick(bodies).toString() : "";
  const length = Buffer.byteLength(body);
  const kind = random.integer(0, 5);
  const [framing, sent] =
    kind === 0
      ? ["Transfer-Encoding: chunked\r\n", `${length.toString(16)}\r\n${body}\r\n${length === 0 ? "" : "0\r\n\r\n"}`]
      : [body === "" ? "" : `Content-Length: ${length}\r\n`, body];
  const more = random.pick([
    "",
    "",
    "Expect: 100-continue\r\n",
    "Connection: upgrade\r\nUpgrade: x\r\n",
    "Connection: keep-alive\r\n",
  ]);
  return `${method} ${path} HTTP/1.1\r\nHost: clone\r\n${framing}${more}\r\n${sent}`;
}

const DICTIONARY = [
  ...[
    "GET /status HTTP/1.1\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 99999999999\r\n",
    "Transfer-Encoding: chunked\r\n",
  ],
  ...[
    "\r\n\r\n",
    "HTTP/1.0",
    "HTTP/2.0",
    "X: y\r\n",
    "ffffffffffffffff\r\n",
    "Host: a\r\nHost: b\r\n",
    "\0",
    "{}",
    "PRI * HTTP/2.0",
  ],
];

/** Sends the pieces; resolves to what came back once the server has closed. */
function speak(path: string, pieces: readonly Uint8Array[], hangUp: boolean): Promise<Buffer> {
  return new Promise((resolve) => {
    const heard: Buffer[] = [];
    const socket = connect({ path, allowHalfOpen: true }, () => {
      for (const piece of pieces) socket.write(piece);
      if (hangUp) socket.destroySoon();
      else socket.end();
    });
    socket.on("data", (data) => heard.push(data));
    socket.on("error", () => {}); // "close" follows
    socket.on("close", () => resolve(Buffer.concat(heard)));
  });
}

/** The first byte of a message says where it is cut, and, from here on, that its client hangs up without listening. */
const HANGS_UP = 241;

/** A client that is well behaved asks after so many messages. */
const ASKED_EVERY = 16;

/** Requests to the server. */
export const controlRequests: FuzzTarget = {
  name: "control-requests",
  weight: 30,
  mostBytes: 1024 * 1024,
  async open() {
    const place = await scratchDirectory();
    const path = join(place.path, "c.sock");
    const server = new ControlServer(new StrictTarget(), { requestTimeoutMs: 2000 });
    await server.listen(join(place.path, "t"), () => renameSync(join(place.path, "t"), path));
    const client = new ControlClient(path, { timeoutMs: 60_000 });
    const bodies = readCorpus("tunings");
    let messages = 0;
    return {
      generate(random) {
        if (random.oneIn(6)) {
          const how = random.integer(0, HANGS_UP - 1);
          return { bytes: Buffer.concat([Buffer.from([how]), Buffer.from(goodRequest(random))]), isGood: true };
        }
        const good = Buffer.from(request(random, bodies));
        const others = [Buffer.from(request(random, bodies)), ...bodies];
        const bytes = random.oneIn(6)
          ? good
          : mutate(good, random, { others, dictionary: DICTIONARY, isText: random.oneIn(2) });
        return { bytes: Buffer.concat([Buffer.from([random.integer(0, 255)]), bytes]), isGood: false };
      },
      async run(message) {
        const [how = 0] = message;
        const middle = 1 + Math.floor(((message.length - 1) * (how % 16)) / 16);
        const answer = await speak(path, [message.subarray(1, middle), message.subarray(middle)], how >= HANGS_UP);
        const said = answer.toString("latin1");
        if (said !== "")
          mustHold(
            /^HTTP\/1\.1 (100|200|400|404|405|408|413|417|431|500) /.test(said),
            `it answers ${said.slice(0, 60)}`,
          );
        mustHold(!said.includes("fault of the program"), said);
        messages += 1;
        if (messages % ASKED_EVERY === 0) mustHold("state" in (await client.status()), "nobody else is served");
        return said.includes(" 200 OK\r\n") ? "accepted" : "refused";
      },
      async [Symbol.asyncDispose]() {
        await server.close();
        await place[Symbol.asyncDispose]();
      },
    };
  },
};

/** Answers to the client: what it is told is an object, or an error. */
export const controlAnswers: FuzzTarget = {
  name: "control-answers",
  weight: 20,
  mostBytes: 1024 * 1024,
  async open() {
    const place = await scratchDirectory();
    const path = join(place.path, "c.sock");
    let answer: Buffer = Buffer.alloc(0);
    const server = createServer((socket: Socket) => {
      socket.on("error", () => {}); // it may have heard enough
      socket.once("data", () => socket.end(answer));
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const client = new ControlClient(path, { timeoutMs: 60_000 });
    const bodies = [
      ...['{"state":"hydrating","regions":5,"metadata":{},"hydration":{}}', '{"error":"no","code":"busy","hint":null}'],
      ...['{"error":"no","code":"__proto__","hint":5}', "[]", "null", '"x"', "{}"],
    ];
    const good = bodies.flatMap((body) => [
      Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`),
      Buffer.from(
        `HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`,
      ),
    ]);
    return {
      generate: (random) => ({
        bytes: mutate(random.pick(good), random, { others: good, dictionary: DICTIONARY, isText: random.oneIn(2) }),
        isGood: false,
      }),
      run(message) {
        answer = message;
        return outcomeOfAsync(async () => {
          const told: unknown = await client.status();
          mustHold(typeof told === "object" && told !== null, "it is told what is no object");
        });
      },
      async [Symbol.asyncDispose]() {
        await new Promise((resolve) => server.close(resolve));
        await place[Symbol.asyncDispose]();
      },
    };
  },
};
