/**
 * Whether a server can be reached at the moment, as its users should hear of it: once when it goes, once when it is back. Of one
 * that comes and goes all the time they hear once a minute.
 */
import type { Clock } from "../../base/clock.ts";

const QUIET_MS = 60_000;

/** The state of one server. */
export class Outage {
  readonly #name: string;
  readonly #clock: Clock;
  readonly #onNote: ((line: string) => void) | undefined;
  #isBroken = false;
  #isNoted = false;
  #ended = 0;
  #quietUntil = -Infinity;

  constructor(name: string, clock: Clock, onNote: ((line: string) => void) | undefined) {
    this.#name = name;
    this.#clock = clock;
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
    if (failures < 2 || this.#isNoted || this.#clock.now() < this.#quietUntil) return;
    this.#isNoted = true;
    this.#quietUntil = this.#clock.now() + QUIET_MS;
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
