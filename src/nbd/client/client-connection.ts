/**
 * One connection in its transmission phase: requests out, replies in, any number of them under way. What becomes of a
 * request is told once: it is done, refused by the server (`ServerError`), or the connection is lost (`ConnectionLostError`).
 * Whether it is sent again is for others to decide.
 */
import type { Clock } from "../../base/clock.ts";
import { Command, CommandFlag, Size } from "../protocol.ts";
import { encodeRequest } from "../transmission-codec.ts";
import type { StatusRuns } from "./chunk-payloads.ts";
import { ConnectionLostError } from "./handshake-error.ts";
import type { PieceRange } from "./in-pieces.ts";
import type { NegotiatedExport } from "./negotiation.ts";
import { PendingRequest, type RequestFacts } from "./pending-request.ts";
import { ReplyReader } from "./reply-reader.ts";
import type { Wire } from "./wire.ts";

/** No request waits longer than so many times the time without a sign, however busy its connection is. */
const LONGEST_FACTOR = 10;
/** A flush may be silent for so many times as long: it waits for a disk that writes. */
const FLUSH_FACTOR = 5;
/** How long the last bytes may take, ms. */
const CLOSING_MS = 1000;

/** What a connection works with. */
export interface ClientConnectionOptions {
  wire: Wire;
  session: NegotiatedExport;
  clock: Clock;
  /** How long a connection may be silent while answers are due, ms. */
  requestTimeoutMs: number;
  /** Which connection of its device it is, counted from the first. */
  serial: number;
}

/** One connection to an export. */
export class ClientConnection {
  readonly session: NegotiatedExport;
  readonly serial: number;
  readonly #wire: Wire;
  readonly #clock: Clock;
  readonly #requestTimeoutMs: number;
  readonly #pending = new Map<number, PendingRequest>();
  /** Answered, while the socket was still reading from the caller's buffer. */
  readonly #sending = new Set<PendingRequest>();
  readonly #ended = new AbortController();
  #cookie = 0;
  #corked = false;
  #watching = false;
  #started = false;
  #lost: ConnectionLostError | undefined;
  /** A request was answered: there is a server that works. */
  proven = false;
  /** Told once, before the requests under way are. `changes` are the bytes that some of them were to change. */
  onLost: (error: ConnectionLostError, changes: readonly PieceRange[]) => void = () => {};
  /** Told of each change that is done and not durable, before whoever asked for it is, and before any loss that follows. */
  onChanged: () => void = () => {};

  constructor({ wire, session, clock, requestTimeoutMs, serial }: ClientConnectionOptions) {
    this.session = session;
    this.serial = serial;
    this.#wire = wire;
    this.#clock = clock;
    this.#requestTimeoutMs = requestTimeoutMs;
  }

  /** Begins to read replies, the first time. By then somebody listens to `onLost`, or looks at `lost` afterwards. */
  start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#wire.onLost = (error) => this.#lose(error);
    if (this.#wire.failure !== undefined) {
      this.#lose(this.#wire.failure);
      return;
    }
    this.#wire.consumeBy((input) => {
      return new ReplyReader({
        input,
        structured: this.session.structured,
        contextId: this.session.contextId,
        find: (high, low) => (high === this.serial ? this.#pending.get(low) : undefined),
        onEnd: (cookie, request) => this.#end(cookie, request),
        onViolation: (cause) => {
          const reason = `the server broke the NBD protocol: ${cause.message}`;
          this.drop(new ConnectionLostError(reason, { errno: "EPROTO", cause }));
        },
      });
    });
  }

  /** Requests under way. */
  get inFlight(): number {
    return this.#pending.size;
  }

  /** Why it is lost, if it is. */
  get lost(): ConnectionLostError | undefined {
    return this.#lost;
  }

  /** Fills `target` from `offset`. Its bytes are undefined until then, and nobody touches them afterwards. */
  async read(offset: number, target: Buffer, flags = 0): Promise<void> {
    await this.#request(flags, { type: Command.read, offset, length: target.length, target });
  }

  async write(offset: number, data: Uint8Array, flags: number): Promise<void> {
    await this.#request(flags, { type: Command.write, offset, length: data.length, durable: hasFua(flags) }, data);
  }

  /** Block status of `base:allocation`, not judged but for its shape. */
  async status(offset: number, length: number): Promise<StatusRuns | undefined> {
    return await this.#request(0, { type: Command.blockStatus, offset, length });
  }

  /** A request that neither sends data nor gets any. */
  async command(type: number, flags: number, offset: number, length: number): Promise<void> {
    await this.#request(flags, { type, offset, length, durable: hasFua(flags) });
  }

  /** Gives the connection up: what is under way ends with `error`. */
  drop(error: ConnectionLostError): void {
    this.#wire.fail(error);
  }

  /** Takes leave. What is under way is lost. */
  async close(): Promise<void> {
    if (this.#lost !== undefined) return;
    if (this.#pending.size > 0) {
      this.drop(new ConnectionLostError("it was closed"));
      return;
    }
    const last = Buffer.alloc(Size.request);
    encodeRequest(last, 0, this.#header(Command.disconnect, 0, 0, 0));
    void this.#clock
      .sleep(CLOSING_MS, this.#ended.signal)
      .then(() => this.drop(new ConnectionLostError("it was closed")));
    await this.#wire.end(last);
  }

  #request(flags: number, facts: RequestFacts, data?: Uint8Array): Promise<StatusRuns | undefined> {
    const lost = this.#lost;
    if (lost !== undefined) return Promise.reject(lost);
    return new Promise((resolve, reject) => {
      const request = new PendingRequest(facts, this.#clock.now(), resolve, reject);
      const header = Buffer.allocUnsafe(Size.request);
      const fields = this.#header(facts.type, flags, facts.offset, facts.length);
      encodeRequest(header, 0, fields);
      this.#pending.set(fields.cookieLow, request);
      this.#cork();
      this.#wire.send(header);
      if (data !== undefined) {
        request.isSending = true;
        this.#wire.write(data, () => {
          this.#sending.delete(request);
          request.sent();
        });
      }
      void this.#watch();
    });
  }

  #header(type: number, flags: number, offset: number, length: number) {
    do this.#cookie = (this.#cookie + 1) % 2 ** 32;
    while (this.#pending.has(this.#cookie));
    return { flags, type, cookieHigh: this.serial, cookieLow: this.#cookie, offset, length };
  }

  /** Requests that are made in one go leave in one go. */
  #cork(): void {
    if (this.#corked) return;
    this.#corked = true;
    this.#wire.cork();
    process.nextTick(() => {
      this.#corked = false;
      this.#wire.uncork();
    });
  }

  #end(cookie: number, request: PendingRequest): void {
    this.proven = true;
    this.#pending.delete(cookie);
    if (request.isSending) this.#sending.add(request);
    if (request.needsFlush) this.onChanged();
  }

  /** Ends the connection where the server gives no sign for too long while it owes an answer. */
  async #watch(): Promise<void> {
    if (this.#watching) return;
    this.#watching = true;
    let [signOf, signAt] = [this.#sign(), this.#clock.now()];
    while (this.#pending.size > 0 && this.#lost === undefined) {
      const now = this.#clock.now();
      const sign = this.#sign();
      if (sign !== signOf) [signOf, signAt] = [sign, now];
      const dueAt = this.#dueAt(signAt);
      if (now >= dueAt) {
        const seconds = Math.round(this.#requestTimeoutMs / 1000);
        this.drop(new ConnectionLostError(`the server did not answer for ${seconds} s`, { errno: "ETIMEDOUT" }));
        break;
      }
      // Signs are looked for some times in the while: none may be older than a sixteenth of it.
      await this.#clock.sleep(Math.min(dueAt - now, this.#requestTimeoutMs / 16), this.#ended.signal);
    }
    this.#watching = false;
  }

  /** Changes whenever the server sends or takes something. */
  #sign(): string {
    return `${this.#wire.progress} ${this.#wire.unsent}`;
  }

  /** When patience ends, if nothing comes. */
  #dueAt(signAt: number): number {
    const [oldest] = this.#pending.values();
    if (oldest === undefined) return Number.POSITIVE_INFINITY;
    let patienceMs = this.#requestTimeoutMs;
    for (const { type } of this.#pending.values()) {
      if (type === Command.flush) patienceMs = FLUSH_FACTOR * this.#requestTimeoutMs;
    }
    const silentSince = Math.max(signAt, oldest.sentAt);
    return Math.min(silentSince + patienceMs, oldest.sentAt + LONGEST_FACTOR * this.#requestTimeoutMs);
  }

  #lose(error: Error): void {
    if (this.#lost !== undefined) return;
    const lost =
      error instanceof ConnectionLostError ? error : new ConnectionLostError(error.message, { cause: error });
    this.#lost = lost;
    this.#ended.abort();
    const requests = [...this.#pending.values(), ...this.#sending];
    this.#pending.clear();
    this.#sending.clear();
    this.onLost(
      lost,
      requests.filter(({ isChange }) => isChange),
    );
    for (const request of requests) request.fail(lost);
  }
}

function hasFua(flags: number): boolean {
  return flags % 2 === CommandFlag.fua;
}
