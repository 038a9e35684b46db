/** So many violations in the time are too many. */
const MOST_VIOLATIONS = 5;

/** How often a server breaks the protocol, over all its connections. Pure: what happens is told to it. */
export class ViolationCount {
  readonly #withinMs: number;
  /** When the last few were, ms by the clock. */
  readonly #times: number[] = [];
  /** Violations of connections up to this one are counted: of those that there were at the same time, one. */
  #countedSerial = -1;

  /** @param withinMs five in so long are too many */
  constructor(withinMs: number) {
    this.#withinMs = withinMs;
  }

  /**
   * Takes note of a violation at `now`, ms by the clock, on the `serial`th connection, while `lastSerial` was that made last.
   * Returns whether there are too many.
   */
  add(now: number, { serial, lastSerial }: { serial: number; lastSerial: number }): boolean {
    if (serial <= this.#countedSerial) return false;
    this.#countedSerial = lastSerial;
    this.#times.push(now);
    if (this.#times.length > MOST_VIOLATIONS) this.#times.shift();
    const [oldest] = this.#times;
    return this.#times.length === MOST_VIOLATIONS && oldest !== undefined && now - oldest <= this.#withinMs;
  }
}
