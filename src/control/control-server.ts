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
import { type Clock, systemClock } from "../base/clock.ts";
import { startDeadline } from "../base/deadline.ts";
import { CloneError } from "../base/errors.ts";
import { type ErrorBody, HttpError, statusOf } from "./control-error.ts";
import { type Answer, JSON_TYPE, json, methodsOf, routeOf, unknownRequest } from "./control-routes.ts";
import type { ControlTarget } from "./control-target.ts";

/** Connections at once; more are closed as they come. */
const MOST_CONNECTIONS = 64;
/** Bytes of a request's head and body. */
const MOST_HEAD_BYTES = 8192;
const MOST_BODY_BYTES = 4096;
/** For a client to send its request, ms; and to take a piece of the answer, of so many bytes. */
const REQUEST_TIMEOUT_MS = 5000;
const PIECE_LENGTH = 65_536;
/** Answers under way when the server closes have this long to arrive, ms. */
const CLOSE_TIMEOUT_MS = 1000;

/** Serves one target, from `listen()` to `close()`. */
export class ControlServer {
  readonly #server: Server;
  readonly #target: ControlTarget;
  /** Connections that have had their request. */
  readonly #served = new WeakSet<Socket>();
  /** What says of a connection that its request has come whole. */
  readonly #asked = new WeakMap<Socket, () => void>();
  readonly #requestTimeoutMs: number;
  readonly #clock: Clock;
  readonly #closing = new AbortController();

  constructor(
    target: ControlTarget,
    { requestTimeoutMs = REQUEST_TIMEOUT_MS, clock = systemClock }: { requestTimeoutMs?: number; clock?: Clock } = {},
  ) {
    this.#target = target;
    this.#requestTimeoutMs = requestTimeoutMs;
    this.#clock = clock;
    // The limits that Node has for time count that in which the process was stopped: there are others here.
    this.#server = createServer(
      { maxHeaderSize: MOST_HEAD_BYTES, headersTimeout: 0, requestTimeout: 0 },
      (request, response) => void this.#serve(request, response),
    );
    setMaxListeners(0, this.#closing.signal); // every answer that is put off listens
    this.#server.maxConnections = MOST_CONNECTIONS;
    this.#server.on("connection", (socket) => this.#awaitRequest(socket));
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
    const ended = startDeadline(this.#clock, CLOSE_TIMEOUT_MS, () => this.#server.closeAllConnections());
    await closed;
    ended();
  }

  #awaitRequest(socket: Socket): void {
    const late = Object.assign(new Error("no request"), { code: "ERR_HTTP_REQUEST_TIMEOUT" });
    const asked = startDeadline(this.#clock, this.#requestTimeoutMs, () => refuse(late, socket));
    this.#asked.set(socket, asked);
    socket.once("close", asked);
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.#served.has(request.socket)) return void request.socket.destroy(); // requests sent ahead have no bound
    this.#served.add(request.socket);
    response.on("error", () => {}); // whoever asked is gone
    response.shouldKeepAlive = false;
    const answer = await this.#answer(request).catch(answerTo);
    this.#asked.get(request.socket)?.();
    const headers = { "Content-Type": answer.contentType, "Content-Length": Buffer.byteLength(answer.text) };
    response.writeHead(
      answer.status,
      answer.status === 405 ? { ...headers, Allow: methodsOf(urlOf(request).pathname) } : headers,
    );
    request.resume(); // what was sent and not wanted
    if (request.method !== "HEAD") await this.#send(response, Buffer.from(answer.text));
    response.end();
  }

  /** Until the client has taken it all, or is gone; or a piece of it not in time. */
  async #send(response: ServerResponse, bytes: Buffer): Promise<void> {
    for (let start = 0; start < bytes.length && !response.destroyed; start += PIECE_LENGTH) {
      const taken = startDeadline(this.#clock, this.#requestTimeoutMs, () => response.destroy());
      await new Promise<void>((resolve) => {
        response.once("close", resolve);
        response.write(bytes.subarray(start, start + PIECE_LENGTH), () => {
          response.off("close", resolve);
          resolve();
        });
      });
      taken();
    }
  }

  async #answer(request: IncomingMessage): Promise<Answer> {
    const { pathname, searchParams } = urlOf(request);
    const method = request.method === "HEAD" ? "GET" : request.method;
    const route = routeOf(method ?? "", pathname);
    if (route === undefined) throw unknownRequest(request.method ?? "", pathname);
    const body = method === "POST" ? await readJson(request) : {};
    this.#asked.get(request.socket)?.(); // from here on it is the clone that takes its time
    return await route.answer({ target: this.#target, query: searchParams, body, closing: this.#closing.signal });
  }
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
  socket.on("error", () => {}); // whoever asked may be gone, and nobody else listens any more: it would end the process
  if (socket.writable) socket.end(`${head.join("\r\n")}\r\n\r\n${body}`);
  socket.destroySoon();
}
