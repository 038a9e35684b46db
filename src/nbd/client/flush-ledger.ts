/**
 * What was written to a server and is not durable yet, as far as it can be known from here. Pure: connections and their
 * losses are told to it.
 *
 *     change acknowledged ──► unflushed ──► flush sent afterwards succeeds ──► durable
 *                                  └──► any connection lost ──► lost, until a flush has told so
 *
 * With several connections a loss of one says little of the others, but neither does it say that the server behind them is
 * still the same process: so what any of them has acknowledged counts as lost.
 */
export class FlushLedger {
  /** Changes acknowledged so far. */
  #acknowledged = 0;
  /** As many of them are durable, or were lost before a flush that succeeded. */
  #settled = 0;
  /** Connections that took something with them. */
  #losses = 0;
  /** As many of those were told by a flush. */
  #told = 0;

  /** How often something was lost, told or not. */
  get losses(): number {
    return this.#losses;
  }

  /** Whether the next flush has to say that something was lost. */
  get hasLost(): boolean {
    return this.#losses > this.#told;
  }

  /** A change was acknowledged that is not durable by itself. */
  acknowledge(): void {
    this.#acknowledged += 1;
  }

  /** A connection was lost. `underWay` says whether it took changes along of which nobody knows what became of them. */
  lose({ underWay }: { underWay: boolean }): void {
    if (underWay || this.#acknowledged > this.#settled) this.#losses += 1;
  }

  /** A flush is asked for: what it has to cover. */
  begin(): FlushMark {
    return { acknowledged: this.#acknowledged, losses: this.#losses };
  }

  /** That flush has succeeded. False where something was lost meanwhile, which then has to be told. */
  succeed(mark: FlushMark): boolean {
    if (mark.losses !== this.#losses) return false;
    this.#settled = Math.max(this.#settled, mark.acknowledged);
    return true;
  }

  /**
   * A flush tells its caller that what was written since the last one is lost. What is there now is no more durable for that: the
   * next loss is one again, until a flush has succeeded.
   */
  tell(): void {
    this.#told = this.#losses;
  }
}

/** A moment in a ledger. */
export interface FlushMark {
  readonly acknowledged: number;
  readonly losses: number;
}
