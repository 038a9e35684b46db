/**
 * The connections to an export: as many as there may be, called again when they are lost.
 *
 *     there ──► all lost: calling, with growing pauses ──► there
 *                   └──► time is up: gone; requests fail, and each of them has it called once more ──► there
 *     it broke the protocol too often: gone as well, and for a while it is not called at all
 *     changed: the export is another one; everything fails for ever
 *
 * Once there is something to know it by (`checkBy`), what is found again is looked at through each new connection before that
 * takes any request.
 *
 * Requests wait here for a connection; what becomes of one whose connection is lost is for their owner to decide.
 */
import type { Clock } from "../../base/clock.ts";
import { ProtocolError } from "../protocol-error.ts";
import type { ClientConnection } from "./client-connection.ts";
import { ConnectionLostError } from "./handshake-error.ts";
import type { PieceRange } from "./in-pieces.ts";
import type { NegotiatedExport } from "./negotiation.ts";
import { ViolationCount } from "./violation-count.ts";

/** Pauses between calls: the first, and the longest; each is spread at random by half. ms. */
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5000;
/** How long a request to a server that is gone waits for the call that it has caused, ms. */
const LAST_HOPE_MS = 4000;
/** How long a further connection may take; who lets nobody else in often does not say so. ms. */
const FURTHER_TIMEOUT_MS = 5000;
/** Further connections that are being made at the end are waited for so long: a server complains of who leaves in the middle. ms. */
const LEAVING_MS = 250;
/** An outage is not told where the last one was told less than so long ago, ms; one that lasts is told in the end. */
const NOTE_PAUSE_MS = 60_000;

/** What a pool works with. */
export interface ConnectionPoolOptions {
  clock: Clock;
  /** Uniformly from 0 to 1, for the spread of pauses. */
  random: () => number;
  /** Makes a connection, the `serial`th. */
  connect: (serial: number, options: { timeoutMs: number; signal: AbortSignal }) => Promise<ClientConnection>;
  /** Most connections, with an export such as was found. */
  mostOf: (session: NegotiatedExport) => number;
  /** Whether several connections are promised to work; if not, they are tried one by one. */
  isShared: (session: NegotiatedExport) => boolean;
  /** What is wrong with an export that was found again: the end of a sentence where it is another one. */
  changeOf: (session: NegotiatedExport) => string | undefined;
  requestTimeoutMs: number;
  reconnectTimeoutMs: number;
  /** A connection was lost, and with it what was under way: the bytes that were to be changed. */
  onLost: (changes: readonly PieceRange[]) => void;
  /** A change was done that a flush has to make durable. */
  onChanged: () => void;
  /** Told in sentences without a subject: "is connected again". */
  onNote: (text: string) => void;
}

/** Why there is no connection to be had: the device makes an error of it. */
export class UnreachableError extends ConnectionLostError {}

/** The connections of one device. */
export class ConnectionPool {
  readonly #options: ConnectionPoolOptions;
  readonly #connections: ClientConnection[] = [];
  readonly #disposed = new AbortController();
  /** Calls under way, and what ends them. */
  readonly #attempts = new Set<Promise<boolean>>();
  readonly #hangUp = new AbortController();
  #session: NegotiatedExport;
  #most: number;
  #serial = 0;
  #losses = 0;
  #incarnation = 0;
  #changed: string | undefined;
  #check: ((connection: ClientConnection) => Promise<string | undefined>) | undefined;
  #calling = false;
  /** Since when there has been no connection, ms by the clock. */
  #awaySince: number | undefined;
  #isGone = false;
  #attemptedAt = Number.NEGATIVE_INFINITY;
  #lastError: Error = new ConnectionLostError("it was not called yet");
  #failures = 0;
  readonly #violations: ViolationCount;
  /** Until then the server is not called, ms by the clock. */
  #brokenUntil = Number.NEGATIVE_INFINITY;
  /** When an outage was told, ms by the clock. */
  #notedAt = Number.NEGATIVE_INFINITY;
  /** Somebody was told that the server is away. */
  #isAwayNoted = false;
  /** Ends the wait for the end of patience. */
  #back = new AbortController();
  readonly #waiting = new Set<() => void>();

  /** Makes the first connection, and more in the background. @throws whatever `connect` throws */
  static async open(options: ConnectionPoolOptions, signal?: AbortSignal): Promise<ConnectionPool> {
    const { requestTimeoutMs: timeoutMs } = options;
    const first = await options.connect(0, { timeoutMs, signal: signal ?? new AbortController().signal });
    return new ConnectionPool(options, first);
  }

  private constructor(options: ConnectionPoolOptions, first: ClientConnection) {
    this.#options = options;
    this.#violations = new ViolationCount(options.reconnectTimeoutMs);
    this.#session = first.session;
    this.#most = options.mostOf(first.session);
    this.#add(first);
    void this.#callFurther();
  }

  /** The export as it was found last. */
  get session(): NegotiatedExport {
    return this.#session;
  }

  /** Connections that were lost and made anew. */
  get incarnation(): number {
    return this.#incarnation;
  }

  get changed(): string | undefined {
    return this.#changed;
  }

  /** Connections at this moment. */
  get size(): number {
    return this.#connections.length;
  }

  /** The number of the connection that was made last: one that is lost later with a lower number was there then. */
  get lastSerial(): number {
    return this.#serial;
  }

  /** The connection with the least to do, if there is one. */
  get idlest(): ClientConnection | undefined {
    let idlest: ClientConnection | undefined;
    for (const connection of this.#connections) {
      if (idlest === undefined || connection.inFlight < idlest.inFlight) idlest = connection;
    }
    return idlest;
  }

  /** A connection, as soon as there is one. @throws {UnreachableError} where there is none for too long */
  async connection(): Promise<ClientConnection> {
    for (let asked = false; ; asked = true) {
      const { idlest } = this;
      if (idlest !== undefined) return idlest;
      if (this.#disposed.signal.aborted) throw new UnreachableError("it was closed", { errno: "EBADF" });
      if (this.#changed !== undefined) throw new UnreachableError(this.#changed, { errno: "ESTALE" });
      if (this.#isGone && (asked || !this.#mayCallAgain())) throw this.#unreachable();
      void this.#call();
      await this.#news(this.#isGone ? LAST_HOPE_MS : undefined);
    }
  }

  /**
   * From now on connections made after a loss are looked at first. `check` resolves to what is wrong with the export, the end of
   * a sentence, or throws where it cannot tell.
   */
  checkBy(check: (connection: ClientConnection) => Promise<string | undefined>): void {
    this.#check = check;
  }

  /** Closes all connections. May be called again. */
  async dispose(): Promise<void> {
    this.#disposed.abort();
    this.#back.abort();
    this.#tell();
    const leaving = [...this.#connections].map((connection) => connection.close());
    if (leaving.length > 0 && this.#attempts.size > 0) {
      const made = new AbortController();
      const { clock } = this.#options;
      await Promise.race([Promise.allSettled(this.#attempts), clock.sleep(LEAVING_MS, made.signal)]);
      made.abort();
    }
    this.#hangUp.abort();
    await Promise.all([...leaving, ...this.#attempts]);
  }

  #mayCallAgain(): boolean {
    if (this.#isBroken) return false;
    return this.#calling || this.#options.clock.now() - this.#attemptedAt >= LONGEST_PAUSE_MS;
  }

  #unreachable(): UnreachableError {
    const { message } = this.#lastError;
    const errno = this.#lastError instanceof ConnectionLostError ? this.#lastError.errno : "ECONNREFUSED";
    return new UnreachableError(message, { errno, cause: this.#lastError });
  }

  #add(connection: ClientConnection): void {
    this.#serial = Math.max(this.#serial, connection.serial);
    if (this.#losses > this.#incarnation) this.#incarnation += 1;
    this.#session = connection.session;
    this.#connections.push(connection);
    connection.onLost = (error, changes) => this.#lose(connection, error, changes);
    connection.onChanged = this.#options.onChanged;
    connection.start();
  }

  #lose(connection: ClientConnection, error: ConnectionLostError, changes: readonly PieceRange[]): void {
    this.#connections.splice(this.#connections.indexOf(connection), 1);
    if (this.#disposed.signal.aborted) return;
    this.#losses += 1;
    if (connection.proven) this.#failures = 0;
    this.#lastError = error;
    this.#options.onLost(changes);
    if (this.#breaksTooOften(connection.serial, error)) return void this.#leaveAlone();
    if (this.#connections.length > 0) {
      // Who ends a connection before it was any use lets only so many in.
      if (!connection.proven) this.#most = this.#connections.length;
      return void this.#callFurther();
    }
    if (this.#changed !== undefined) return;
    if (this.#isBroken) return;
    this.#noteAway(`is not there any more (${error.message}); it is called again`);
    this.#awaySince = this.#options.clock.now();
    void this.#giveUpInTime();
    void this.#call();
  }

  get #isBroken(): boolean {
    return this.#options.clock.now() < this.#brokenUntil;
  }

  /** Takes note of a violation of the protocol, where a connection was lost by one. */
  #breaksTooOften(serial: number, error: ConnectionLostError): boolean {
    if (!(error.cause instanceof ProtocolError)) return false;
    return this.#violations.add(this.#options.clock.now(), { serial, lastSerial: this.#serial });
  }

  /** Has nothing to do with the server for a while. */
  #leaveAlone(): void {
    const { clock, reconnectTimeoutMs, onNote } = this.#options;
    const now = clock.now();
    this.#brokenUntil = now + reconnectTimeoutMs;
    this.#isGone = true;
    this.#awaySince ??= now;
    this.#back.abort();
    this.#isAwayNoted = true;
    onNote(`is not called for ${Math.round(reconnectTimeoutMs / 1000)} s: ${this.#lastError.message}`);
    const { message, errno } = this.#unreachable();
    for (const other of [...this.#connections]) other.drop(new ConnectionLostError(message, { errno }));
    this.#tell();
  }

  /** Tells that the server is away, unless that was told a moment ago: a server may come and go without end. */
  #noteAway(text: string): void {
    const now = this.#options.clock.now();
    if (now - this.#notedAt < NOTE_PAUSE_MS) return;
    this.#notedAt = now;
    this.#isAwayNoted = true;
    this.#options.onNote(text);
  }

  /** After a while without a connection requests are told so, and do not wait any more. */
  async #giveUpInTime(): Promise<void> {
    const { clock, reconnectTimeoutMs, onNote } = this.#options;
    this.#back = new AbortController();
    const { signal } = this.#back;
    await clock.sleep(reconnectTimeoutMs, signal);
    if (signal.aborted) return;
    this.#isGone = true;
    this.#isAwayNoted = true;
    onNote(`has not come back for ${Math.round(reconnectTimeoutMs / 1000)} s (${this.#lastError.message})`);
    this.#tell();
  }

  /** Calls until there is a connection, or, once the server counts as gone, once. */
  async #call(): Promise<void> {
    if (this.#calling) return;
    this.#calling = true;
    const { clock } = this.#options;
    while (this.#connections.length === 0 && !this.#isOver) {
      const pauseMs = this.#isGone ? 0 : this.#pauseMs();
      if (pauseMs > 0) await clock.sleep(pauseMs, this.#disposed.signal);
      if (this.#isOver || (this.#isGone && pauseMs > 0)) break;
      await this.#attempt(this.#options.requestTimeoutMs);
      this.#tell();
      if (this.#isGone) break;
    }
    this.#calling = false;
    if (this.#connections.length > 0) await this.#callFurther();
  }

  get #isOver(): boolean {
    return this.#disposed.signal.aborted || this.#changed !== undefined || this.#isBroken;
  }

  /** The first call after a connection that worked is made at once. */
  #pauseMs(): number {
    const longest = this.#failures === 0 ? 0 : Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (this.#failures - 1));
    return longest * (0.5 + this.#options.random() / 2);
  }

  /** Makes one more connection, or says in `#lastError` why not. */
  async #attempt(timeoutMs: number): Promise<boolean> {
    const attempt = this.#tryToConnect(timeoutMs);
    this.#attempts.add(attempt);
    try {
      return await attempt;
    } finally {
      this.#attempts.delete(attempt);
    }
  }

  async #tryToConnect(timeoutMs: number): Promise<boolean> {
    const { clock, connect, changeOf, onNote } = this.#options;
    this.#failures = Math.min(this.#failures + 1, 16); // until a request is answered
    const serial = ++this.#serial;
    try {
      const connection = await connect(serial, { timeoutMs, signal: this.#hangUp.signal });
      const change = changeOf(connection.session) ?? (await this.#findChange(connection));
      if (this.#disposed.signal.aborted) {
        connection.start();
        await connection.close();
        return false;
      }
      if (this.#isOver || change !== undefined) {
        connection.drop(new ConnectionLostError(change ?? "it was closed"));
        if (change !== undefined && !this.#isOver) this.#becomeChanged(change);
        return false;
      }
      this.#add(connection);
      if (this.#awaySince !== undefined) {
        const seconds = Math.round((clock.now() - this.#awaySince) / 100) / 10;
        if (this.#isAwayNoted) onNote(`is there again after ${seconds} s`);
        this.#isAwayNoted = false;
        this.#awaySince = undefined;
        this.#isGone = false;
        this.#back.abort();
        this.#most = this.#options.mostOf(connection.session);
      }
      return true;
    } catch (error) {
      if (this.#connections.length === 0) this.#lastError = error as Error;
      // It was lost while it was looked at.
      if (error instanceof ConnectionLostError && this.#breaksTooOften(serial, error)) this.#leaveAlone();
      return false;
    } finally {
      this.#attemptedAt = clock.now();
    }
  }

  /** What is wrong with what a new connection shows. @throws where the connection is lost meanwhile */
  async #findChange(connection: ClientConnection): Promise<string | undefined> {
    if (this.#check === undefined || this.#losses === 0 || this.#isOver) return undefined;
    const { signal } = this.#disposed;
    const drop = (): void => connection.drop(new ConnectionLostError("it was closed"));
    signal.addEventListener("abort", drop, { once: true });
    try {
      connection.start();
      const change = await this.#check(connection);
      if (connection.lost !== undefined) throw connection.lost;
      return change;
    } catch (error) {
      drop();
      throw error;
    } finally {
      signal.removeEventListener("abort", drop);
    }
  }

  /** Brings up the connections besides the first. A server that does not want them is left with those there are. */
  async #callFurther(): Promise<void> {
    if (this.#calling || this.#isOver || this.#connections.length >= this.#most) return;
    this.#calling = true;
    const timeoutMs = Math.min(FURTHER_TIMEOUT_MS, this.#options.requestTimeoutMs);
    const missing = this.#most - this.#connections.length;
    const losses = this.#losses;
    if (this.#options.isShared(this.#session)) {
      await Promise.all(Array.from({ length: missing }, () => this.#attempt(timeoutMs)));
    } else {
      for (let more = true; more && this.#connections.length > 0 && this.#connections.length < this.#most; ) {
        more = await this.#attempt(timeoutMs);
      }
    }
    this.#calling = false;
    this.#tell();
    if (this.#connections.length === 0) void this.#call();
    else if (this.#losses === losses) this.#most = this.#connections.length;
  }

  #becomeChanged(change: string): void {
    this.#changed = change;
    this.#back.abort();
    this.#options.onNote(`has changed: ${change}`);
    for (const connection of [...this.#connections])
      connection.drop(new ConnectionLostError(change, { errno: "ESTALE" }));
    this.#tell();
  }

  /** Resolves when something has happened, or time is up. */
  async #news(mostMs: number | undefined): Promise<void> {
    const heard = new AbortController();
    const news = new Promise<void>((resolve) => {
      const hear = (): void => {
        this.#waiting.delete(hear);
        heard.abort();
        resolve();
      };
      this.#waiting.add(hear);
      if (mostMs !== undefined) void this.#options.clock.sleep(mostMs, heard.signal).then(hear);
    });
    await news;
  }

  #tell(): void {
    for (const hear of [...this.#waiting]) hear();
  }
}
