/**
 * One request and its reply. Where the body goes is decided when the head is there, by whoever asked: into memory of known
 * length, or, of an error, the beginning of it kept as text; or the connection is closed without reading it.
 *
 *     sent ──► head ──┬── into(buffer) ──► bytes, counted; one too many ends it
 *                     ├── text ──► at most 64 KiB, so that the connection can be used again
 *                     └── nothing ──► closed: a body of terabytes is not read to its end
 */
import type { Dispatcher } from "undici";
import type { Clock } from "../../base/clock.ts";
import type { ReplyHead } from "./reply-head.ts";

/** What becomes of a body. */
export type BodyUse = { kind: "into"; buffer: Uint8Array } | { kind: "text" } | { kind: "nothing" };

/** What to ask whom. */
export interface ExchangeOptions {
  dispatcher: Dispatcher;
  /** `https://host:port`. */
  origin: string;
  /** As it is sent, percent-encoded. */
  path: string;
  headers: Record<string, string>;
  /** Called once, with the head. */
  use(head: ReplyHead): BodyUse;
  clock: Clock;
  /** How long it may go on without a sign of progress, connecting included; ms. */
  silenceMs: number;
  signal: AbortSignal;
}

/** How it ended. */
export interface ExchangeResult {
  head: ReplyHead | undefined;
  /** Bytes that are in the buffer, from its beginning. */
  received: number;
  /** Beginning of the body, where that was asked for. */
  text: string;
  /** Why the reply did not come to its end; undefined where it did. */
  error: Error | undefined;
}

/** The peer was silent for too long. */
export class SilenceError extends Error {}

/** The body is longer than the head had said. */
export class OverlongError extends Error {}

/** Nobody wants the rest of the body. */
class UnwantedError extends Error {}

const MAX_TEXT = 65536;

/** Fewer bytes than this in a whole time of silence are no progress: else one byte a minute would keep a clone waiting. */
const LEAST_PROGRESS = 1024;

/** Sends a request and receives its reply. Never rejects. After it has settled the buffer is not touched any more. */
export function exchange(options: ExchangeOptions): Promise<ExchangeResult> {
  return new Promise((resolve) => new Exchange(options, resolve).start());
}

/** Made once: an error of one's own for each of thousands of requests is not free. */
const OVER = new Error("over");

class Exchange implements Dispatcher.DispatchHandler {
  readonly #options: ExchangeOptions;
  readonly #resolve: (result: ExchangeResult) => void;
  readonly #over = new AbortController();
  #controller: Dispatcher.DispatchController | undefined;
  #head: ReplyHead | undefined;
  #use: BodyUse = { kind: "nothing" };
  #received = 0;
  #progress = 0;
  readonly #text: Buffer[] = [];
  #settled = false;

  constructor(options: ExchangeOptions, resolve: (result: ExchangeResult) => void) {
    this.#options = options;
    this.#resolve = resolve;
  }

  start(): void {
    const { dispatcher, origin, path, headers, signal } = this.#options;
    if (signal.aborted) {
      this.#settle(abortedError());
      return;
    }
    signal.addEventListener("abort", this.#onAbort, { once: true });
    void this.#watch();
    try {
      // Whether undici's own timers are on does not matter: silence is watched here, with the clock of the tests.
      dispatcher.dispatch({ origin, path, method: "GET", headers, headersTimeout: 0, bodyTimeout: 0 }, this);
    } catch (error) {
      this.#settle(error as Error);
    }
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#settled) controller.abort(new UnwantedError());
  }

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: ReplyHead["headers"]): void {
    if (this.#settled || status < 200) return;
    this.#progress += LEAST_PROGRESS;
    this.#head = { status, headers };
    this.#use = this.#options.use(this.#head);
    if (this.#use.kind === "nothing") this.#end(undefined);
  }

  onResponseData(_: Dispatcher.DispatchController, chunk: Uint8Array): void {
    if (this.#settled) return;
    this.#progress += chunk.length;
    if (this.#use.kind === "into") {
      const { buffer } = this.#use;
      if (chunk.length > buffer.length - this.#received) {
        this.#end(new OverlongError());
        return;
      }
      buffer.set(chunk, this.#received);
    } else {
      const room = MAX_TEXT - this.#received;
      this.#text.push(Buffer.from(chunk.subarray(0, room)));
      if (chunk.length > room) {
        this.#end(undefined);
        return;
      }
    }
    this.#received += chunk.length;
  }

  onResponseEnd(): void {
    this.#settle(undefined);
  }

  onResponseError(_: Dispatcher.DispatchController | undefined, error: Error): void {
    this.#settle(error);
  }

  #onAbort = (): void => this.#end(abortedError());

  /** Settles before the reply has come to its end, so the connection is closed. */
  #end(error: Error | undefined): void {
    this.#settle(error);
    this.#controller?.abort(error ?? new UnwantedError());
  }

  async #watch(): Promise<void> {
    const { clock, silenceMs } = this.#options;
    while (!this.#settled) {
      const before = this.#progress;
      await clock.sleep(silenceMs, this.#over.signal);
      if (!this.#settled && this.#progress - before < LEAST_PROGRESS) this.#end(new SilenceError());
    }
  }

  #settle(error: Error | undefined): void {
    if (this.#settled) return;
    this.#settled = true;
    this.#over.abort(OVER);
    this.#options.signal.removeEventListener("abort", this.#onAbort);
    const received = this.#use.kind === "into" ? this.#received : 0;
    this.#use = { kind: "nothing" }; // lets go of the buffer
    this.#resolve({ head: this.#head, received, text: Buffer.concat(this.#text).toString("utf8"), error });
  }
}

function abortedError(): Error {
  return new DOMException("aborted", "AbortError");
}
