/** How fast something long goes: averages over the last seconds, so that they follow a throttle or a slow spot. */

/** How far it is, bytes. */
export interface RateSample {
  /** Of the whole, done, however it came to be done. */
  done: number;
  /** Read or shared since it began: what the rate is about. */
  moved: number;
}

/** Rates are averages over this long. */
const WINDOW_MS = 5000;

/** Rate and time left, from the samples of the last seconds. */
export class RateMeter {
  readonly #samples: (RateSample & { at: number })[] = [];

  /** Takes a sample made at `atMs`; about one a second is enough. */
  add(atMs: number, { done, moved }: RateSample): void {
    this.#samples.push({ at: atMs, done, moved });
    while (this.#samples.length > 2 && atMs - (this.#samples[1]?.at ?? atMs) >= WINDOW_MS) this.#samples.shift();
  }

  /** Bytes per second moved lately. */
  get bytesPerSecond(): number {
    return this.#perSecond("moved");
  }

  /** Seconds until `total` is done at the pace of late, or null while nothing moves. */
  secondsLeft(total: number): number | null {
    const perSecond = this.#perSecond("done");
    const done = this.#samples.at(-1)?.done ?? 0;
    return done >= total ? 0 : perSecond > 0 ? (total - done) / perSecond : null;
  }

  #perSecond(what: "done" | "moved"): number {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (first === undefined || last === undefined || last.at <= first.at) return 0;
    return ((last[what] - first[what]) * 1000) / (last.at - first.at);
  }
}
