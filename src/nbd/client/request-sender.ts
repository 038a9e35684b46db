/**
 * Sends requests over whatever connection there is, so many at a time. A question is sent again where its connection is lost,
 * a change never: the connection may have been lost before it was done, or after, or it may still be done later, over what was
 * written since. It fails, and so does the next flush.
 */
import type { Clock } from "../../base/clock.ts";
import { Command, TransmissionFlag } from "../protocol.ts";
import { ProtocolError } from "../protocol-error.ts";
import type { ClientConnection } from "./client-connection.ts";
import type { ConnectionPool } from "./connection-pool.ts";
import type { FlushLedger, FlushMark } from "./flush-ledger.ts";
import { ConnectionLostError, ServerError } from "./handshake-error.ts";
import { offers } from "./negotiation.ts";
import type { RequestFailures, RequestName } from "./request-failures.ts";
import { RequestWindow } from "./request-window.ts";

/** Bytes under way, over all connections. */
const WINDOW_BYTES = 16 * 1024 * 1024;
/** Requests under way on each connection. */
const REQUESTS_PER_CONNECTION = 64;
/** A question is sent so often: a server may die of it each time, or break the protocol each time. */
const MOST_LOSSES = 10;
const MOST_VIOLATIONS = 3;

const FLUSH: RequestName = { verb: "flush" };

/** What a sender works with. */
export interface RequestSenderOptions {
  pool: ConnectionPool;
  ledger: FlushLedger;
  failures: RequestFailures;
  /** Most connections that the pool will have. */
  connections: number;
  clock: Clock;
  /** A question that has been lost for so long is not sent again, ms. */
  patienceMs: number;
}

/** A request: what messages call it, and its payload in bytes, in whichever direction. */
export interface SentRequest extends Required<RequestName> {
  readonly payload: number;
}

/** Sends the requests of one device. */
export class RequestSender {
  readonly #pool: ConnectionPool;
  readonly #ledger: FlushLedger;
  readonly #failures: RequestFailures;
  readonly #window: RequestWindow;
  readonly #clock: Clock;
  readonly #patienceMs: number;
  /** When a question was not answered at last, ms by the clock. */
  #givenUpAt = Number.NEGATIVE_INFINITY;
  #hasLostQuestions = false;

  constructor({ pool, ledger, failures, connections, clock, patienceMs }: RequestSenderOptions) {
    this.#pool = pool;
    this.#ledger = ledger;
    this.#failures = failures;
    this.#clock = clock;
    this.#patienceMs = patienceMs;
    this.#window = new RequestWindow({ bytes: WINDOW_BYTES, requests: REQUESTS_PER_CONNECTION * connections });
  }

  /** Whether a connection was ever lost with a question under way. */
  get hasLostQuestions(): boolean {
    return this.#hasLostQuestions;
  }

  /** Asks until there is an answer. @throws {DeviceError} */
  async ask<T>(request: SentRequest, attempt: (connection: ClientConnection) => Promise<T>): Promise<T> {
    if (!this.#window.tryEnter(request.payload)) await this.#window.enter(request.payload);
    try {
      return await this.#askAgain(attempt);
    } catch (error) {
      throw this.#failures.of(request, error);
    } finally {
      this.#window.leave(request.payload);
    }
  }

  /** Sends a change, once. @throws {LostWritesError}, {DeviceError} */
  async change(request: SentRequest, send: (connection: ClientConnection) => Promise<void>): Promise<void> {
    if (!this.#window.tryEnter(request.payload)) await this.#window.enter(request.payload);
    try {
      const connection = await this.#connection(request); // where there is none, it was never sent
      try {
        await send(connection);
      } catch (error) {
        if (!wasLost(connection, error)) throw this.#failures.of(request, error);
        this.#ledger.lose({ underWay: true });
        throw this.#failures.lost(request, error);
      }
    } finally {
      this.#window.leave(request.payload);
    }
  }

  /**
   * Makes durable what has returned. @throws {LostWritesError} where some of it may be lost; that is told by then, unless
   * `leaveUntold`: then the next flush tells it as well
   */
  async flush({ leaveUntold = false } = {}): Promise<void> {
    const mark = this.#ledger.begin();
    const { hasLost } = this.#ledger;
    if (hasLost) await undefined; // others who call now have not heard of it either: they see it untold as well
    const lost = hasLost ? this.#failures.lost(FLUSH) : await this.#flush(mark);
    if (lost === undefined) return;
    if (!leaveUntold) this.#ledger.tell();
    throw lost;
  }

  /** One flush, which is to vouch for all up to the mark; or why it cannot. @throws {DeviceError} */
  async #flush(mark: FlushMark): Promise<Error | undefined> {
    const startedAt = this.#clock.now();
    for (let attempt = 1; ; attempt++) {
      const connection = await this.#connection(FLUSH);
      try {
        if (offers(connection.session, TransmissionFlag.sendFlush)) await connection.command(Command.flush, 0, 0, 0);
        return this.#ledger.succeed(mark) ? undefined : this.#failures.lost(FLUSH);
      } catch (error) {
        const isOver = attempt >= MOST_LOSSES || this.#isTooLate(startedAt);
        if (!wasLost(connection, error) || isOver) throw this.#failures.of(FLUSH, error);
        if (this.#ledger.losses !== mark.losses) return this.#failures.lost(FLUSH, error);
        // Nothing was lost with the connection: all was durable before, and it may be asked again whether it is.
      }
    }
  }

  async #connection(request: RequestName): Promise<ClientConnection> {
    try {
      return this.#pool.idlest ?? (await this.#pool.connection());
    } catch (error) {
      throw this.#failures.of(request, error);
    }
  }

  #isTooLate(startedAt: number): boolean {
    return this.#clock.now() - startedAt >= this.#patienceMs;
  }

  async #askAgain<T>(attempt: (connection: ClientConnection) => Promise<T>): Promise<T> {
    const startedAt = this.#clock.now();
    let [losses, violations] = [0, 0];
    for (let [counted, attempts] = [-1, 1]; ; attempts++) {
      const connection = this.#pool.idlest ?? (await this.#pool.connection());
      try {
        return await attempt(connection);
      } catch (error) {
        if (!wasLost(connection, error)) throw error;
        // A server may let everybody in, again and again, and answer nobody. One that was slow once gets another try.
        // After that others who are not answered do not get it.
        const hasHope = startedAt - this.#givenUpAt >= this.#patienceMs || !isSilence(error);
        if ((attempts > 1 && this.#isTooLate(startedAt)) || !hasHope) {
          this.#givenUpAt = this.#clock.now();
          throw error;
        }
        // Connections that there were at the same time go at the same time: that is one loss.
        if (connection.serial <= counted) continue;
        counted = this.#pool.lastSerial;
        losses += 1;
        this.#hasLostQuestions = true;
        if (error instanceof Error && error.cause instanceof ProtocolError) violations += 1;
        if (losses >= MOST_LOSSES || violations >= MOST_VIOLATIONS) throw error;
      }
    }
  }
}

function isSilence(error: unknown): boolean {
  return error instanceof ConnectionLostError && error.errno === "ETIMEDOUT";
}

/** Whether a request failed with its connection. A server that is shutting down takes no more on it: that is the same. */
function wasLost(connection: ClientConnection, error: unknown): boolean {
  if (error instanceof ServerError && error.errno === "ESHUTDOWN") {
    connection.drop(new ConnectionLostError("the server is shutting down", { cause: error }));
    return true;
  }
  return error instanceof ConnectionLostError;
}
