/**
 * The control socket's server: HTTP/1.1 with JSON over a unix socket, so that curl is a client too
 * (`curl --unix-socket disk.img.clone.sock http://clone/status`). One request a connection.
 *
 * What reaches the clone is bounded and checked first: connections, requests in work, bytes of head and body, the time that a
 * client may take to ask and to take its answer. Who exceeds a bound gets an answer or loses its connection; nobody else
 * notices. The time that the clone itself takes (a commit, a finalize) is not limited.
 *
 * An error is answered as `{"error": message, "code": code of the CloneError, "hint": hint or null}`.
 */
import { AssertionError } from "node:assert";
import { setMaxListeners } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { systemClock } from "../base/clock.ts";
import { CloneError, UsageError } from "../base/errors.ts";
import { type ErrorBody, HttpError, statusOf } from "./control-error.ts";
import type { ControlTarget } from "./control-target.ts";
import { parseFinalize, parseNothing, parseTuning } from "./tuning.ts";

/** Connections at once; more are closed as they come. */
const MOST_CONNECTIONS = 64;
/** Bytes of a request's head and body. */
const MOST_HEAD_BYTES = 8192;
const MOST_BODY_BYTES = 4096;
/** For a client to send its request, ms; and to take a piece of the answer. */
const REQUEST_TIMEOUT_MS = 5000;
/** Answers under way when the server closes have this long to arrive, ms. */
const CLOSE_TIMEOUT_MS = 1000;
/** How long an answer may be put off until the state changes, and how often that is looked at, ms. */
const LONGEST_WAIT_MS = 10_000;
const LOOK_INTERVAL_MS = 100;
/** Ranges of regions in one answer. */
const DEFAULT_RANGES = 4096;
const MOST_RANGES = 65536;

const JSON_TYPE = "application/json; charset=utf-8";

/** What a request comes to. */
interface Answer {
  status: number;
  contentType: string;
  text: string;
}

/** A request's means, as its route sees them. */
interface Asked {
  target: ControlTarget;
  query: URLSearchParams;
  /** The body as JSON; `{}` where there is none. */
  body: unknown;
  /** Aborts when the server closes. */
  closing: AbortSignal;
}

interface Route {
  description: string;
  answer: (asked: Asked) => Answer | Promise<Answer>;
}

/** By method and path. `/` lists them. */
const ROUTES: Record<string, Route> = {
  "GET /": {
    description: "This list",
    answer: () => json(200, { requests: descriptions() }),
  },
  "GET /status": {
    description: `What \`clone status --json\` prints; ?wait=MS: when the state has changed, or after so many milliseconds (at most ${LONGEST_WAIT_MS})`,
    async answer({ target, query, closing }) {
      const waitMs = countAsked(query, "wait", { least: 0, most: LONGEST_WAIT_MS, otherwise: 0 });
      await stateChange(target, waitMs, closing);
      return json(200, target.status());
    },
  },
  "GET /regions": {
    description: `Ranges of hydrated and unreadable regions, half-open; ?most=N of them (${DEFAULT_RANGES}, at most ${MOST_RANGES})`,
    answer({ target, query }) {
      const most = countAsked(query, "most", { least: 1, most: MOST_RANGES, otherwise: DEFAULT_RANGES });
      return json(200, target.regions(most));
    },
  },
  "GET /metrics": {
    description: "Metrics as Prometheus reads them",
    answer: async ({ target }) => ({ status: 200, ...(await target.metrics()) }),
  },
  "POST /tune": {
    description:
      "Changes a running hydration: rate, minRate, threshold, batchSize, paused, hydrateOnRead; answers as /status",
    answer({ target, body }) {
      target.tune(parseTuning(body));
      return json(200, target.status());
    },
  },
  "POST /pause": {
    description: "Lets hydration in the background rest; answers as /status",
    answer({ target, body }) {
      parseNothing(body);
      target.tune({ paused: true });
      return json(200, target.status());
    },
  },
  "POST /resume": {
    description: "Lets hydration in the background go on; answers as /status",
    answer({ target, body }) {
      parseNothing(body);
      target.tune({ paused: false });
      return json(200, target.status());
    },
  },
  "POST /commit": {
    description: "Makes durable what is hydrated so far; answers, afterwards, as /status",
    async answer({ target, body }) {
      parseNothing(body);
      await target.commit();
      return json(200, target.status());
    },
  },
  "POST /finalize": {
    description:
      "Makes the destination stand alone: keepMetadata, acceptUnreadable; answers, afterwards, what was done",
    answer: async ({ target, body }) => json(200, await target.finalize(parseFinalize(body))),
  },
  "POST /stop": {
    description: "Ends the process as SIGTERM does",
    async answer({ target, body }) {
      parseNothing(body);
      await target.stop();
      return json(200, { stopping: true });
    },
  },
};

/** Serves one target, from `listen()` to `close()`. */
export class ControlServer {
  readonly #server: Server;
  readonly #target: ControlTarget;
  /** Connections that have had their request. */
  readonly #served = new WeakSet<Socket>();
  readonly #requestTimeoutMs: number;
  readonly #closing = new AbortController();

  constructor(target: ControlTarget, { requestTimeoutMs = REQUEST_TIMEOUT_MS }: { requestTimeoutMs?: number } = {}) {
    this.#target = target;
    this.#requestTimeoutMs = requestTimeoutMs;
    this.#server = createServer(
      {
        maxHeaderSize: MOST_HEAD_BYTES,
        headersTimeout: requestTimeoutMs,
        requestTimeout: requestTimeoutMs,
        connectionsCheckingInterval: requestTimeoutMs / 5,
      },
      (request, response) => void this.#serve(request, response),
    );
    setMaxListeners(0, this.#closing.signal); // every answer that is put off listens
    this.#server.maxConnections = MOST_CONNECTIONS;
    this.#server.timeout = requestTimeoutMs; // nothing sent, and nothing taken, for so long
    this.#server.on("clientError", refuse);
    this.#server.on("connect", (_request, socket: Socket) => refuse(new Error("CONNECT"), socket));
    this.#server.on("upgrade", (_request, socket: Socket) => refuse(new Error("upgrade"), socket));
  }

  /**
   * Binds to `path`, where nothing may stand, for this user alone from the first moment: the umask is set around the bind,
   * which happens inside `listen()` before that returns. `onBound` is called right behind it, before anybody can connect
   * through a name that it gives the socket.
   * @throws as `node:net` does, where the path cannot be bound, and what `onBound` throws
   */
  async listen(path: string, onBound: () => void): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject).once("listening", resolve);
      const umask = process.umask(0o177);
      try {
        this.#server.listen(path);
      } finally {
        process.umask(umask);
      }
      if (this.#server.listening) onBound();
    });
    this.#server.on("error", () => {}); // of accepting, as EMFILE: whoever asked asks again
  }

  /** Takes no more requests; answers under way have a moment to arrive. Any number of times. */
  async close(): Promise<void> {
    this.#closing.abort();
    if (!this.#server.listening) return;
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    const impatience = setTimeout(() => this.#server.closeAllConnections(), CLOSE_TIMEOUT_MS);
    await closed;
    clearTimeout(impatience);
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.#served.has(request.socket)) return void request.socket.destroy(); // requests sent ahead have no bound
    this.#served.add(request.socket);
    response.on("error", () => {}); // whoever asked is gone
    response.shouldKeepAlive = false;
    const answer = await this.#answer(request).catch(answerTo);
    request.socket.setTimeout(this.#requestTimeoutMs);
    const headers = { "Content-Type": answer.contentType, "Content-Length": Buffer.byteLength(answer.text) };
    response.writeHead(answer.status, answer.status === 405 ? { ...headers, Allow: methodsOf(request) } : headers);
    response.end(request.method === "HEAD" ? "" : answer.text);
    request.resume(); // what was sent and not wanted
  }

  async #answer(request: IncomingMessage): Promise<Answer> {
    const { pathname, searchParams } = urlOf(request);
    const method = request.method === "HEAD" ? "GET" : request.method;
    const route = Object.hasOwn(ROUTES, `${method} ${pathname}`) ? ROUTES[`${method} ${pathname}`] : undefined;
    if (route === undefined) throw unknownRequest(request.method ?? "", pathname);
    const body = method === "POST" ? await readJson(request) : {};
    request.socket.setTimeout(0); // from here on it is the clone that takes its time
    return await route.answer({ target: this.#target, query: searchParams, body, closing: this.#closing.signal });
  }
}

function json(status: number, value: object): Answer {
  return { status, contentType: JSON_TYPE, text: `${JSON.stringify(value)}\n` };
}

/** @throws what cannot be answered: a broken invariant ends the process here as anywhere else */
function answerTo(error: unknown): Answer {
  if (error instanceof AssertionError) throw error;
  const body: ErrorBody =
    error instanceof CloneError
      ? { error: error.message, code: error.code, hint: error.hint ?? null }
      : { error: `Cannot answer, this is a fault of the program: ${error}`, code: "failed", hint: null };
  return json(statusOf(error), body);
}

function urlOf(request: IncomingMessage): URL {
  try {
    return new URL(request.url ?? "/", "http://clone");
  } catch {
    throw new HttpError(400, "Cannot understand the request: its path is none");
  }
}

function unknownRequest(method: string, path: string): HttpError {
  const isThere = Object.keys(ROUTES).some((name) => name.endsWith(` ${path}`));
  const hint = "GET / lists the requests.";
  if (isThere) return new HttpError(405, `Cannot ${method} ${path}: it takes another method`, hint);
  return new HttpError(404, `Cannot ${method} ${path}: there is no such request`, hint);
}

/** The methods that the request's path does take. */
function methodsOf(request: IncomingMessage): string {
  const { pathname } = urlOf(request);
  return Object.keys(ROUTES)
    .filter((name) => name.endsWith(` ${pathname}`))
    .map((name) => name.replace(/ .*/, ""))
    .join(", ");
}

function descriptions(): Record<string, string> {
  return Object.fromEntries(Object.entries(ROUTES).map(([name, { description }]) => [name, description]));
}

function countAsked(
  query: URLSearchParams,
  name: string,
  { least, most, otherwise }: { least: number; most: number; otherwise: number },
): number {
  const text = query.get(name);
  if (text === null) return otherwise;
  const count = /^\d{1,9}$/.test(text) ? Number(text) : -1;
  if (count >= least && count <= most) return count;
  throw new UsageError(`Cannot use the request: ${name} has to be a whole number from ${least} to ${most}`);
}

/**
 * Resolves when the target's state is another one, when `waitMs` are over, or when the server closes: so that whoever follows
 * a clone to its end hears of the end, although the process ends with it.
 */
async function stateChange(target: ControlTarget, waitMs: number, closing: AbortSignal): Promise<void> {
  const stateNow = (): unknown => (target.status() as { state?: unknown }).state;
  const before = stateNow();
  for (let leftMs = waitMs; leftMs > 0 && !closing.aborted && stateNow() === before; leftMs -= LOOK_INTERVAL_MS) {
    await systemClock.sleep(Math.min(leftMs, LOOK_INTERVAL_MS), closing);
  }
}

/** @throws {HttpError} for a body that is no JSON */
async function readJson(request: IncomingMessage): Promise<unknown> {
  const text = (await readBody(request)).toString("utf8").trim();
  if (text === "") return {};
  try {
    return JSON.parse(text);
  } catch {
    throw new HttpError(400, "Cannot use the request: its body is no JSON");
  }
}

/** Not by iterating, which would end the connection where it stops early. @throws {HttpError} for a body that is too long */
function readBody(request: IncomingMessage): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    let length = 0;
    request.on("data", (piece: Buffer) => {
      length += piece.length;
      if (length <= MOST_BODY_BYTES) pieces.push(piece);
      else reject(new HttpError(413, `Cannot use the request: its body has over ${MOST_BODY_BYTES} bytes`));
    });
    request.on("end", () => resolve(Buffer.concat(pieces)));
    request.on("error", () => reject(new HttpError(400, "Cannot use the request: it is not whole")));
  });
}

/** Answers what is no HTTP, or comes too slowly, as far as the client still listens, and ends the connection. */
function refuse(error: Error & { code?: string }, socket: Socket): void {
  const status =
    error.code === "HPE_HEADER_OVERFLOW"
      ? "431 Request Header Fields Too Large"
      : error.code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? "408 Request Timeout"
        : "400 Bad Request";
  const body = `${JSON.stringify({ error: `Cannot understand the request: ${status}`, code: "usage", hint: null } satisfies ErrorBody)}\n`;
  const head = [
    `HTTP/1.1 ${status}`,
    `Content-Type: ${JSON_TYPE}`,
    `Content-Length: ${Buffer.byteLength(body)}`,
    "Connection: close",
  ];
  if (socket.writable) socket.end(`${head.join("\r\n")}\r\n\r\n${body}`);
  socket.destroySoon();
}
