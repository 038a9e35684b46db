/** A server of devices to NBD clients: where it listens, whom it lets in, and how it ends. */
import type { Socket } from "node:net";
import { type Clock, systemClock } from "../base/clock.ts";
import { ByteBudget } from "./byte-budget.ts";
import { Connection, type ConnectionContext } from "./connection.ts";
import { ExportTable, type NbdExport } from "./export.ts";
import type { TlsMode } from "./handshake.ts";
import { type ListenAddress, Listener } from "./listener.ts";
import { PayloadBuffers } from "./payload-buffers.ts";
import { ServerCounters } from "./server-counters.ts";
import { DEFAULT_LIMITS, type ServerLimits } from "./server-limits.ts";
import { SharedBuffer } from "./socket-input.ts";
import { checkCredentials, type TlsCredentials } from "./tls-upgrade.ts";
import { WarningLimiter } from "./warning-limiter.ts";

/** How a server is to be. */
export interface NbdServerOptions {
  /** In the order that clients see them in. */
  exports: Iterable<NbdExport>;
  /** The export of clients that name none; default the only one. */
  defaultExport?: string;
  /** Default off. */
  tls?: { mode: TlsMode; credentials?: TlsCredentials };
  limits?: Partial<ServerLimits>;
  clock?: Clock;
  /** One line for whoever looks after the server; nothing in it is asked of anybody. */
  onWarning?: (text: string) => void;
  /** Called with the number of clients whenever it has changed. */
  onConnections?: (count: number) => void;
}

/** A connection may be this long in its handshake before one that comes when all places are taken gets its place. */
const LINGERING_MS = 1000;

/** Serves devices over NBD until it is shut down. */
export class NbdServer {
  /** What was done so far. */
  readonly counters = new ServerCounters();
  readonly #options: NbdServerOptions;
  readonly #tls: TlsMode;
  readonly #limits: ServerLimits;
  readonly #clock: Clock;
  readonly #context: ConnectionContext;
  readonly #budget: ByteBudget;
  readonly #listeners: Listener[] = [];
  readonly #connections = new Set<Connection>();
  readonly #stopped = new AbortController();
  #shuttingDown = false;
  /** Those who wait for its end. */
  readonly #waiting: (() => void)[] = [];

  /**
   * @throws {UsageError} where the TLS credentials cannot be used
   * @throws {TypeError} where exports have the same name, or TLS is on without credentials
   */
  constructor(options: NbdServerOptions) {
    const { mode, credentials } = options.tls ?? { mode: "off" };
    if (mode !== "off") {
      if (credentials === undefined) throw new TypeError(`TLS is to be "${mode}", but there are no credentials`);
      checkCredentials(credentials);
    }
    this.#options = options;
    this.#tls = mode;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#clock = options.clock ?? systemClock;
    this.#budget = new ByteBudget(this.#limits.bytesShared);
    const limiter = new WarningLimiter((text) => options.onWarning?.(text), this.#clock);
    this.#context = {
      exports: new ExportTable(options.exports, options.defaultExport),
      tls: { mode, credentials },
      limits: this.#limits,
      clock: this.#clock,
      shared: new SharedBuffer(),
      buffers: new PayloadBuffers(),
      budget: this.#budget,
      counters: this.counters,
      isShuttingDown: () => this.#shuttingDown,
      onWarning: (text) => limiter.warn(text),
      onAnswered: () => this.#settle(),
    };
  }

  /** Clients at this moment. */
  get connections(): number {
    return this.#connections.size;
  }

  /** Bytes that requests and replies hold at this moment. */
  get bytesInFlight(): number {
    let bytes = 0;
    for (const connection of this.#connections) bytes += connection.bytesHeld;
    return bytes;
  }

  /**
   * What clients are told to open, a URI for each place that it listens in; none for a descriptor whose path is not known.
   * @param name of the export; the default one is in no need of it
   */
  uris(name = ""): string[] {
    return this.#listeners.flatMap((listener) => listener.uri({ tls: this.#tls === "require", name }) ?? []);
  }

  /** Begins to listen in one more place. @throws {CloneError} where it cannot */
  async listen(address: ListenAddress): Promise<void> {
    if (this.#shuttingDown) throw new TypeError("the server was shut down");
    const listener = await Listener.open(address, {
      onSocket: (socket) => this.#accept(socket),
      onError: (reason) => this.#context.onWarning(`a client could not be let in: ${reason}`),
    });
    if (this.#listeners.length === 0) void this.#dropStalled();
    this.#listeners.push(listener);
  }

  /**
   * Ends the server: nobody is let in any more, new requests are refused with ESHUTDOWN, those in flight are answered, and
   * then the connections are closed; after `graceMs` they are closed all the same. Resolves when all are, and when the
   * device has answered what it was asked, as far as it does within that time. May be called again.
   */
  async shutdown({ graceMs }: { graceMs: number }): Promise<void> {
    this.#shuttingDown = true;
    this.#stopped.abort();
    const timeout = new AbortController();
    const grace = this.#clock.sleep(graceMs, timeout.signal);
    const idle = new Promise<void>((resolve) => this.#waiting.push(resolve));
    for (const listener of this.#listeners.splice(0)) listener.close();
    for (const connection of this.#connections) connection.shutDown();
    this.#settle();
    await Promise.race([idle, grace]);
    timeout.abort();
    for (const connection of [...this.#connections]) connection.destroy();
  }

  get #isIdle(): boolean {
    return this.#connections.size === 0 && this.counters.requestsInFlight === 0;
  }

  #accept(socket: Socket): void {
    if (this.#shuttingDown || !this.#haveRoom()) {
      this.counters.connectionsRefused++;
      socket.on("error", () => {}); // it is gone either way
      socket.destroy();
      return;
    }
    this.counters.connections++;
    this.#connections.add(new Connection(socket, this.#context, (connection) => this.#forget(connection)));
    this.#options.onConnections?.(this.#connections.size);
  }

  /** Whether one more may come. Clients that linger in their handshake, as port scanners do, keep nobody out. */
  #haveRoom(): boolean {
    if (this.#connections.size < this.#limits.connections) return true;
    const now = this.#clock.now();
    for (const connection of this.#connections) {
      if (!connection.isHandshaking || now - connection.since < LINGERING_MS) continue;
      connection.drop("others wait to be let in, and it lingered in its handshake");
      return true;
    }
    return false;
  }

  #forget(connection: Connection): void {
    this.#connections.delete(connection);
    this.#options.onConnections?.(this.#connections.size);
    this.#settle();
  }

  /** Tells those who wait for the server's end that there is nothing left to do. */
  #settle(): void {
    if (this.#shuttingDown && this.#isIdle) for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** Drops clients that do nothing while they hold memory that others wait for. */
  async #dropStalled(): Promise<void> {
    let before = new Map<Connection, number>();
    while (!this.#stopped.signal.aborted) {
      await this.#clock.sleep(this.#limits.stallMs, this.#stopped.signal);
      const now = new Map<Connection, number>();
      for (const connection of this.#budget.contended ? [...this.#connections] : []) {
        if (!connection.holdsOthersUp) continue;
        if (before.get(connection) === connection.progress) connection.drop("others wait for the memory that it holds");
        else now.set(connection, connection.progress);
      }
      before = now;
    }
  }
}
