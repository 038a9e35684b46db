/** Whether a server can be reached at the moment, as its users should hear of it: once when it goes, once when it is back. */
export class Outage {
  readonly #name: string;
  readonly #onNote: ((line: string) => void) | undefined;
  #isBroken = false;
  #isNoted = false;
  #ended = 0;

  constructor(name: string, onNote: ((line: string) => void) | undefined) {
    this.#name = name;
    this.#onNote = onNote;
  }

  /** How often a connection was made anew after one had broken. */
  get ended(): number {
    return this.#ended;
  }

  /**
   * A request failed, for the `failures`th time in a row. The first failure is not worth a word: a server that closes a
   * connection just as it is used again is no outage.
   */
  failed({ why, failures, isBroken }: { why: string; failures: number; isBroken: boolean }): void {
    this.#isBroken ||= isBroken;
    if (failures < 2 || this.#isNoted) return;
    this.#isNoted = true;
    this.#onNote?.(`"${this.#name}" cannot be read at the moment: ${why}; trying again`);
  }

  /** A request was answered. */
  worked(): void {
    if (this.#isBroken) this.#ended += 1;
    this.#isBroken = false;
    if (!this.#isNoted) return;
    this.#isNoted = false;
    this.#onNote?.(`"${this.#name}" can be read again`);
  }
}
