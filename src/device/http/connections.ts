/**
 * Keep-alive connections to the servers that a source is read from, directly or through a proxy.
 *
 *     http:  through a proxy: GET http://host/path to the proxy, as proxies allow it to any port
 *     https: through a proxy: CONNECT host:443, and TLS with the server inside of it
 */
import { setMaxListeners } from "node:events";
import { buildConnector, type Dispatcher, Pool, ProxyAgent } from "undici";
import type { Clock } from "../../base/clock.ts";
import type { Environment } from "./credentials.ts";
import { type BodyUse, type ExchangeResult, exchange } from "./exchange.ts";
import { type ProxyServer, proxyFor } from "./proxy-choice.ts";
import { type Connector, MAX_HEAD, recyclingConnector } from "./recycling-socket.ts";
import type { ReplyHead } from "./reply-head.ts";
import { PROXY_HUNG_UP } from "./transport-error.ts";
import { trustedAuthorities } from "./trusted-authorities.ts";

/** A thing to ask for. */
export interface Target {
  /** `https://host:port`. */
  readonly origin: string;
  /** Path and query as they are sent: percent-encoded, and not to be normalised. */
  readonly path: string;
}

/** How to connect. */
export interface ConnectionOptions {
  environment: Environment;
  /** Most connections to one server. */
  connections: number;
  clock: Clock;
  /** How long a connection, or a reply, may show no progress; ms. */
  silenceMs: number;
}

/** Connecting is given up after this, ms: a server that is up answers sooner, one that is not may have another address. */
const CONNECT_MS = 15_000;

/** A connection without requests is kept this long, unless the server says less; ms. */
const KEEP_ALIVE_MS = 30_000;

interface Route {
  dispatcher: Dispatcher;
  /** A proxy that is asked for whole URLs. */
  proxy: ProxyServer | undefined;
}

/** Connections by server. */
export class Connections {
  readonly #options: ConnectionOptions;
  readonly #routes = new Map<string, Promise<Route>>();

  readonly #closing = new AbortController();

  constructor(options: ConnectionOptions) {
    setMaxListeners(0, this.#closing.signal); // each connection that is being made listens; pools bound them
    this.#options = options;
  }

  /**
   * Asks for a thing with GET. What goes wrong on the way is in the result.
   * @throws {UsageError} where the environment names a proxy that cannot be used
   * @throws {CloneError} where it names certificates that cannot be read
   */
  async get(
    { origin, path }: Target,
    headers: Record<string, string>,
    use: (head: ReplyHead) => BodyUse,
    signal: AbortSignal,
  ): Promise<ExchangeResult> {
    const { dispatcher, proxy } = await this.#route(origin);
    const { clock, silenceMs } = this.#options;
    const common = { dispatcher, use, clock, silenceMs, signal };
    if (proxy === undefined) return await exchange({ ...common, origin, path, headers });
    const toProxy: Record<string, string> = { ...headers, host: new URL(origin).host };
    if (proxy.authorization !== undefined) toProxy["proxy-authorization"] = proxy.authorization;
    return await exchange({ ...common, origin: proxy.origin, path: `${origin}${path}`, headers: toProxy });
  }

  /** Closes connections to servers that are not asked any more. */
  async keepOnly(origins: readonly string[]): Promise<void> {
    const others = [...this.#routes].filter(([origin]) => !origins.includes(origin));
    for (const [origin] of others) this.#routes.delete(origin);
    await Promise.all(others.map(([, route]) => destroy(route)));
  }

  /** Cuts all connections; what is under way ends with an error. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.keepOnly([]);
  }

  #route(origin: string): Promise<Route> {
    let route = this.#routes.get(origin);
    if (route === undefined) {
      route = this.#connect(origin);
      this.#routes.set(origin, route);
      route.catch(() => this.#routes.delete(origin)); // to be tried anew; whoever waits for it is told
    }
    return route;
  }

  async #connect(origin: string): Promise<Route> {
    const { environment, connections } = this.#options;
    const proxy = proxyFor(origin, environment);
    const usesTls = origin.startsWith("https:") || proxy?.origin.startsWith("https:") === true;
    const secureContext = usesTls ? await trustedAuthorities(environment) : undefined;
    // Never unverified, whatever NODE_TLS_REJECT_UNAUTHORIZED says.
    const tls = secureContext === undefined ? {} : { secureContext, rejectUnauthorized: true };
    const timeoutMs = Math.min(CONNECT_MS, this.#options.silenceMs);
    const pool = { connections, pipelining: 1, keepAliveTimeout: KEEP_ALIVE_MS, maxHeaderSize: MAX_HEAD };
    const withTls = { timeout: timeoutMs, ...tls }; // in ticks of undici's, which leave out time in which the process was stopped
    const { signal } = this.#closing;
    const plain = endingWith(signal, recyclingConnector({ timeoutMs }));
    const secure = endingWith(signal, buildConnector(withTls) as Connector);
    const first = proxy?.origin ?? origin;
    const connect = first.startsWith("http:") ? plain : secure;
    if (proxy === undefined || origin.startsWith("http:")) {
      return { dispatcher: new Pool(first, { ...pool, connect }), proxy };
    }
    const { authorization } = proxy;
    const token = authorization === undefined ? {} : { token: authorization };
    const clientFactory = (url: URL): Dispatcher => tunnelPool(new Pool(url, { connect }));
    const tunnel = { ...pool, uri: proxy.origin, ...token, requestTls: withTls, clientFactory };
    return { dispatcher: new ProxyAgent(tunnel), proxy: undefined };
  }
}

/** undici waits for a connection that is being made, whatever happens meanwhile: with the signal that ends, too. */
function endingWith(signal: AbortSignal, connector: Connector): Connector {
  return (options, callback) => {
    const socket = connector(options, (...result) => {
      signal.removeEventListener("abort", end);
      callback(...result);
    });
    const end = (): void => void socket.destroy(new Error("nobody wants it any more"));
    signal.addEventListener("abort", end, { once: true });
    if (signal.aborted) end();
    return socket;
  };
}

/** Errors of undici's that its pool of tunnels takes for the end of a request, and makes the next tunnel at once. */
const ENDLESS = ["UND_ERR_SOCKET", "UND_ERR_INFO"];

/**
 * A pool of connections to a proxy. Where that hangs up on a CONNECT, the request fails, as any other would: else undici would ask
 * again without a pause, thousands of times a second.
 */
function tunnelPool(pool: Pool): Pool {
  const connect = pool.connect.bind(pool) as (options: Dispatcher.ConnectOptions) => Promise<Dispatcher.ConnectData>;
  const failing = async (options: Dispatcher.ConnectOptions): Promise<Dispatcher.ConnectData> => {
    try {
      return await connect(options);
    } catch (error) {
      if (!(error instanceof Error && "code" in error && ENDLESS.includes(String(error.code)))) throw error;
      throw Object.assign(new Error("the proxy hung up", { cause: error }), { code: PROXY_HUNG_UP });
    }
  };
  return Object.assign(pool, { connect: failing });
}

async function destroy(route: Promise<Route>): Promise<void> {
  const opened = await route.catch(() => undefined);
  await opened?.dispatcher.destroy();
}
