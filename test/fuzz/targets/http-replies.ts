/**
 * What web servers and S3 send: whole dialogues in raw bytes, with heads, ranges, lengths, chunks and redirects that lie. Whatever
 * it is, opening and reading end with data or a DeviceError, and no byte lands beside the buffer. A message is a number of replies,
 * parted by a line; each request gets the next one. Where a reply leads elsewhere, our server is the proxy: nothing leaves it.
 */
import { type AddressInfo, createServer, type Socket } from "node:net";
import { HttpDevice } from "../../../src/device/http/http-device.ts";
import { type AskedRange, judgeReply } from "../../../src/device/http/range-reply.ts";
import { type Headers, parseContentRange, retryAfterMs } from "../../../src/device/http/reply-head.ts";
import { conditionsFor, differenceOf, mismatch, validatorsOf } from "../../../src/device/http/validators.ts";
import type { RemoteDevice } from "../../../src/device/remote-device.ts";
import { openS3 } from "../../../src/device/s3/s3-device.ts";
import { HastyClock } from "../../support/hasty-clock.ts";
import type { SeededRandom } from "../../support/random.ts";
import { mutate } from "../mutate.ts";
import { type FuzzTarget, mustHold, outcomeOfAsync, readCorpus } from "../target.ts";

const SEPARATOR = "\n---- next reply ----\n";
const SIZE = 16_000;
const READ = { offset: 100, length: 2000 };
const GUARD = 64;
/** A server that waits for a request that does not come ends the connection after this, ms. */
const IDLE_MS = 20;

const ETAG = 'ETag: "one"\r\nLast-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n';

function part(first: number, last: number, more = ETAG): string {
  const body = "x".repeat(last - first + 1);
  return `HTTP/1.1 206 Partial Content\r\nContent-Range: bytes ${first}-${last}/${SIZE}\r\nContent-Length: ${body.length}\r\n${more}\r\n${body}`;
}

function chunked(first: number, last: number): string {
  const length = last - first + 1;
  const half = Math.floor(length / 2);
  const chunk = (bytes: number): string => `${bytes.toString(16)};x=y\r\n${"x".repeat(bytes)}\r\n`;
  const body = `${half > 0 ? chunk(half) : ""}${chunk(length - half)}0\r\nTrailer: t\r\n\r\n`;
  return `HTTP/1.1 206 Partial Content\r\nContent-Range: bytes ${first}-${last}/${SIZE}\r\nTransfer-Encoding: chunked\r\n${ETAG}\r\n${body}`;
}

function answer(status: string, fields = "", body = ""): string {
  return `HTTP/1.1 ${status}\r\n${fields}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}

const last = READ.offset + READ.length - 1;
/** Dialogues that end well, and others. */
const GOOD = [
  [part(0, 0), part(READ.offset, last)],
  [chunked(0, 0), chunked(READ.offset, last)],
  [answer("302 Found", "Location: /other.img\r\n"), part(0, 0), part(READ.offset, last)],
  [part(0, 0), answer("503 Service Unavailable", "Retry-After: 1\r\n"), part(READ.offset, last)],
  [part(0, 0, 'ETag: W/"weak"\r\n'), part(READ.offset, last, 'ETag: W/"weak"\r\n')],
];
const BAD = [
  [part(0, 0), part(READ.offset, last, 'ETag: "two"\r\n')],
  [part(0, 0), answer("412 Precondition Failed")],
  [part(0, 0), answer("416 Range Not Satisfiable", "Content-Range: bytes */5\r\n")],
  [answer("200 OK", ETAG, "the whole of it")],
  [answer("308 Permanent Redirect", "Location: https://elsewhere.example/x\r\n")],
  [answer("301 Moved Permanently", "Location: ftp://elsewhere.example/x\r\n")],
  [answer("407 Proxy Authentication Required")],
  ["HTTP/1.1 100 Continue\r\n\r\n".repeat(3) + part(0, 0)],
];

function s3Replies(errors: readonly Buffer[]): string[][] {
  return errors.flatMap((error) => [
    [answer("301 Moved Permanently", "x-amz-bucket-region: eu-central-1\r\n", error.toString()), part(0, 0)],
    [
      part(0, 0, `${ETAG}x-amz-version-id: v1\r\n`),
      part(0, 0),
      answer("403 Forbidden", "", error.toString()),
      part(READ.offset, last),
    ],
    [
      answer(
        "400 Bad Request",
        "Date: Wed, 01 Jan 2025 00:00:00 GMT\r\n",
        error.toString().replace(/<Code>\w*/, "<Code>RequestTimeTooSkewed"),
      ),
    ],
  ]);
}

function bytesOf(replies: readonly string[]): Buffer {
  return Buffer.from(replies.join(SEPARATOR), "latin1");
}

const DICTIONARY = [
  ...[
    "Content-Length: 1\r\n",
    "Content-Range: bytes 0-0/5\r\n",
    "bytes */0",
    "Transfer-Encoding: chunked\r\n",
    "HTTP/1.1 206 X\r\n",
  ],
  ...[
    "Content-Encoding: gzip\r\n",
    'ETag: "',
    "W/",
    "Location: http://[::1]:1/\r\n",
    "Location: //x\r\n",
    "Retry-After: 999999999\r\n",
  ],
  ...[
    "\r\n\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
    "Content-Type: multipart/byteranges; boundary=x\r\n",
    SEPARATOR,
    "Set-Cookie: a\r\n",
  ],
];

/** A server that says what a message says. */
async function scriptedServer() {
  let replies: Buffer[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    let asked = "";
    socket.setTimeout(IDLE_MS, () => socket.destroySoon());
    socket.on("error", () => {}); // "close" follows
    socket.on("close", () => sockets.delete(socket));
    socket.on("data", (data) => {
      asked += data.toString("latin1");
      for (let end = asked.indexOf("\r\n\r\n"); end >= 0; end = asked.indexOf("\r\n\r\n")) {
        asked = asked.slice(end + 4);
        const next = replies.shift();
        if (next === undefined) return void socket.destroy();
        socket.write(next);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    say(message: Buffer) {
      replies = message
        .toString("latin1")
        .split(SEPARATOR)
        .map((reply) => Buffer.from(reply, "latin1"));
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

interface DialogueOptions {
  name: string;
  weight: number;
  good: string[][];
  others: string[][];
  open: (origin: string, environment: Record<string, string>) => Promise<RemoteDevice>;
}

function dialogues({ name, weight, good, others, open }: DialogueOptions): FuzzTarget {
  return {
    name,
    weight,
    mostBytes: 4 * 1024 * 1024,
    async open() {
      const server = await scriptedServer();
      const material = [...good, ...others].map(bytesOf);
      return {
        generate(random: SeededRandom) {
          if (random.oneIn(10) && good.length > 0) return { bytes: bytesOf(random.pick(good)), isGood: true };
          const isText = random.oneIn(2);
          return {
            bytes: mutate(random.pick(material), random, { others: material, dictionary: DICTIONARY, isText }),
            isGood: false,
          };
        },
        run(message) {
          server.say(message);
          const leadsElsewhere = /location|region/i.test(message.toString("latin1"));
          const proxies = { http_proxy: server.origin, https_proxy: server.origin };
          return outcomeOfAsync(async () => {
            await using device = await open(server.origin, leadsElsewhere ? proxies : {});
            mustHold(Number.isSafeInteger(device.size) && device.size > 0, `its size is ${device.size}`);
            const around = Buffer.alloc(READ.length + 2 * GUARD, 0xee);
            const length = Math.min(READ.length, device.size);
            const offset = Math.min(READ.offset, device.size - length);
            try {
              await device.read(offset, around.subarray(GUARD, GUARD + length));
            } finally {
              const guards = Buffer.concat([around.subarray(0, GUARD), around.subarray(GUARD + length)]);
              mustHold(
                guards.every((byte) => byte === 0xee),
                "bytes were written around a buffer",
              );
            }
          });
        },
        [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
      };
    },
  };
}

/** Silence is noticed by the server's end of the connection, and pauses are no time at all. */
const patience = () => ({
  clock: new HastyClock(50_000),
  random: () => 0.5,
  requestTimeoutMs: 60_000,
  reconnectTimeoutMs: 2000,
  connections: 2,
});

/** Web servers. */
export const httpReplies: FuzzTarget = dialogues({
  name: "http-replies",
  weight: 8,
  good: GOOD,
  others: BAD,
  open: (origin, environment) =>
    HttpDevice.open(`${origin}/disk.img`, { ...patience(), environment: { HOME: "/nonexistent", ...environment } }),
});

/** S3. */
export const s3Dialogues: FuzzTarget = dialogues({
  name: "s3-replies",
  weight: 5,
  good: [],
  others: [...s3Replies(readCorpus("s3-errors")), ...GOOD],
  open: (origin, environment) =>
    openS3(
      { bucket: "bucket", key: "disk.img" },
      {
        ...patience(),
        environment: {
          ...{ HOME: "/nonexistent", AWS_ENDPOINT_URL_S3: origin, AWS_ACCESS_KEY_ID: "AKIAIOSFODNN7EXAMPLE" },
          ...{ AWS_SECRET_ACCESS_KEY: "secret", ...environment },
        },
      },
    ),
});

/** Heads of replies, without a socket: a status and lines of fields. */
export const replyHeads: FuzzTarget = {
  name: "reply-heads",
  weight: 100,
  mostBytes: 1024 * 1024,
  open() {
    const heads = [...GOOD, ...BAD]
      .flat()
      .map((reply) => Buffer.from(reply.slice(9, reply.indexOf("\r\n\r\n")), "latin1"));
    const pinned = validatorsOf(
      { status: 206, headers: { etag: '"one"', "last-modified": "Wed, 01 Jan 2025 00:00:00 GMT" } },
      SIZE,
    );
    const askedOf: AskedRange[] = [
      { offset: 0, length: 1, pinned: undefined },
      { ...READ, pinned },
    ];
    return {
      generate: (random) => ({
        bytes: random.oneIn(10)
          ? random.pick(heads)
          : mutate(random.pick(heads), random, { others: heads, dictionary: DICTIONARY, isText: true }),
        isGood: false,
      }),
      run(message) {
        const [first = "", ...lines] = message.toString("latin1").split("\r\n");
        const headers: Record<string, string | string[]> = {};
        for (const line of lines) {
          const name = line.split(":", 1)[0]?.trim().toLowerCase() ?? "";
          const value = line.slice(name.length + 1).trim();
          const before = Object.hasOwn(headers, name) ? headers[name] : undefined;
          if (Array.isArray(before)) {
            before.push(value); // there may be a hundred thousand of them
            continue;
          }
          Object.defineProperty(headers, name, {
            value: before === undefined ? value : [before, value],
            ...{ enumerable: true, configurable: true, writable: true },
          });
        }
        const head = { status: Number.parseInt(first, 10) || 0, headers: headers as Headers };
        let isData = false;
        for (const asked of askedOf) {
          const verdict = judgeReply(head, asked);
          if (verdict.kind !== "data") continue;
          isData = true;
          mustHold(verdict.length > 0 && verdict.length <= asked.length, `${verdict.length} bytes of ${asked.length}`);
          mustHold(verdict.total >= asked.offset + verdict.length, `a total of ${verdict.total}`);
          const range = parseContentRange(String(headers["content-range"]));
          mustHold(range?.first === asked.offset, "it is another range's");
        }
        const now = validatorsOf(head, SIZE);
        for (const value of Object.values(conditionsFor(now))) {
          mustHold(
            /^[\x20-\x7e\x80-\xff]*$/.test(value) && value.length <= 1024,
            `a condition that cannot be sent: ${value}`,
          );
        }
        mismatch(pinned, head);
        differenceOf(pinned, now);
        const afterMs = retryAfterMs(head, 0);
        mustHold(afterMs === undefined || (Number.isFinite(afterMs) && afterMs >= 0), `to be waited for: ${afterMs}`);
        return isData ? "accepted" : "refused";
      },
      async [Symbol.asyncDispose]() {},
    };
  },
};
