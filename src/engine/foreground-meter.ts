/**
 * What clients experience, as far as one process can tell without costing them anything.
 *
 * Of a request that is waited for, that is its time: from `begin()` to `end()`. A request that is served at once takes a
 * microsecond, and what its client waits for lies before: in the socket, while the event loop is busy with something else or
 * has no processor. But a client with some requests in flight sends the next when it has the reply, so that from the end of
 * one turn of the event loop that served requests to the end of the next is what a round trip takes it:
 *
 *     client   ──request──►          ◄──reply── ──request──►                    ◄──reply──
 *     loop            [ busy ][ turn ]                 [ busy with a copy ][ turn ]
 *                              └──────────────── this long ───────────────────┘
 *
 * Measured against a client of its own, the quantiles of both agree within a tenth, at a queue depth of 1 as of 16. Where
 * nobody asks for a while that is no round trip, and not recorded.
 */
import type { Clock } from "../base/clock.ts";
import { LatencyHistogram } from "./latency-histogram.ts";

/** From one turn to the next, ms: beyond this nobody had asked. */
const LONGEST_TURN_MS = 20;
/** The quantiles that `latency` tells are of the last one to two of these, ms. */
const WINDOW_MS = 10_000;
const resolved = Promise.resolve();

/** Counts requests, and how long they take. */
export class ForegroundMeter {
  /** How long requests took since somebody last cleared it; filled while `measuring`. */
  readonly pressure = new LatencyHistogram();
  /** Whether `touch()` measures, which takes it some 100 ns once a turn; counting costs next to nothing. */
  measuring = false;
  readonly #clock: Clock;
  #requests = 0;
  #inFlight = 0;
  #lastAt = -Infinity;
  #served = 0;
  readonly #endTurn = (): void => this.#turnEnded();
  readonly #windows = [new LatencyHistogram(), new LatencyHistogram()] as [LatencyHistogram, LatencyHistogram];
  #windowBegan = -Infinity;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Requests there were, ever. */
  get requests(): number {
    return this.#requests;
  }

  /** Requests that are being waited for. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** For how long nobody has asked for anything, ms; 0 while something is in flight. Of `touch()` only while `measuring`. */
  get quietMs(): number {
    return this.#inFlight > 0 ? 0 : this.#clock.now() - this.#lastAt;
  }

  /** The time that a share `q` (0 … 1) of the requests that were waited for lately did not exceed, ms. */
  latency(q: number): number {
    this.#turnWindow(this.#clock.now());
    const both = new LatencyHistogram();
    for (const window of this.#windows) both.add(window);
    return both.quantile(q);
  }

  /** A request begins that will be waited for; returns what `end()` is to be given. */
  begin(): number {
    this.#inFlight++;
    return this.#clock.now();
  }

  /** It has ended. */
  end(token: number): void {
    const now = this.#clock.now();
    this.#inFlight--;
    this.#requests++;
    this.#lastAt = now;
    this.#turnWindow(now);
    this.#windows[0].record(now - token);
    if (this.measuring) this.pressure.record(now - token);
  }

  /** A request was served at once. */
  touch(): void {
    this.#requests++;
    if (!this.measuring) return;
    if (this.#served === 0) void resolved.then(this.#endTurn);
    this.#served++;
  }

  #turnEnded(): void {
    const now = this.#clock.now();
    const turnMs = now - this.#lastAt;
    if (turnMs <= LONGEST_TURN_MS) this.pressure.record(turnMs, this.#served);
    this.#lastAt = now;
    this.#served = 0;
  }

  #turnWindow(now: number): void {
    if (now - this.#windowBegan < WINDOW_MS) return;
    const old = this.#windows[1];
    if (now - this.#windowBegan >= 2 * WINDOW_MS) this.#windows[0].clear();
    this.#windows[1] = this.#windows[0];
    this.#windows[0] = old;
    old.clear();
    this.#windowBegan = now;
  }
}
