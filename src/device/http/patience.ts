/**
 * How long a request is tried again. It ends when nothing was got for so long, counted from the first failure since something
 * was got: however long that one took, as a server that falls silent does, there is a second try. In between, pauses grow and
 * are spread at random, so that many who were cut off together do not come back together.
 */
import type { Clock } from "../../base/clock.ts";

/** How to wait. */
export interface PatienceOptions {
  clock: Clock;
  /** Uniformly from 0 to 1, for the spread. */
  random: () => number;
  /** How long to go on without getting anything, ms. */
  budgetMs: number;
}

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;

/** So often a reply may be no answer to the request: a server that always does so will not stop. */
const MOST_WRONG = 6;

/** The patience of one request. */
export class Patience {
  readonly #options: PatienceOptions;
  #failingSince: number | undefined;
  #failures = 0;
  #tries = 0;
  #wrong = 0;

  constructor(options: PatienceOptions) {
    this.#options = options;
  }

  /** Attempts that failed since something was got. */
  get failures(): number {
    return this.#failures;
  }

  /** Attempts that failed, whatever was got in between. */
  get tries(): number {
    return this.#tries;
  }

  /** Something was got. */
  progress(): void {
    this.#failingSince = undefined;
    this.#failures = 0;
  }

  /**
   * How long to wait before the next attempt, ms; undefined where there is none. `afterMs` is what the server asks for: it
   * is never asked sooner than that, and where that is too late, it is not asked again at all.
   */
  pauseMs({
    afterMs = 0,
    isWrong = false,
  }: {
    afterMs?: number | undefined;
    isWrong?: boolean;
  } = {}): number | undefined {
    const { clock, random, budgetMs } = this.#options;
    this.#tries += 1;
    if (isWrong) {
      this.#wrong += 1;
      if (this.#wrong > MOST_WRONG) return undefined;
    }
    this.#failingSince ??= clock.now();
    const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(this.#failures, 16));
    this.#failures += 1;
    const pauseMs = Math.max(longest * (0.5 + random() / 2), afterMs);
    return clock.now() + pauseMs - this.#failingSince > budgetMs ? undefined : pauseMs;
  }
}
