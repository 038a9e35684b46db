/**
 * The bound on the memory that clients' requests hold, in all and for each. A connection always has its reserve, which
 * nobody else can use up, so that small requests go on whatever others do; what it holds beyond the reserve comes out of
 * what all share. Who finds too little waits, first come, first served. A request larger than the whole bound is let in
 * when nothing else is.
 */

/** What is shared by the connections of a server. */
export class ByteBudget {
  readonly #total: number;
  #used = 0;
  readonly #waiting = new Set<Allowance>();

  /** @param total bytes beyond the reserves that may be held at the same time */
  constructor(total: number) {
    this.#total = total;
  }

  /** Bytes held beyond the reserves. */
  get used(): number {
    return this.#used;
  }

  /** Whether somebody waits for bytes that others hold. */
  get contended(): boolean {
    return this.#waiting.size > 0;
  }

  /** @param onAvailable called, never from inside a call to this class, when a connection that was refused may ask again */
  open({ reserve, most, onAvailable }: { reserve: number; most: number; onAvailable: () => void }): Allowance {
    return new Allowance(this, { reserve, most, onAvailable });
  }

  /** For `Allowance`. */
  take(who: Allowance, bytes: number): boolean {
    const [first = who] = this.#waiting;
    if (first !== who) return this.#wait(who);
    if (this.#used > 0 && this.#used + bytes > this.#total) return this.#wait(who);
    this.#used += bytes;
    this.forget(who); // and the next may find enough as well
    return true;
  }

  /** For `Allowance`. */
  give(bytes: number): void {
    this.#used -= bytes;
    this.#wakeFirst();
  }

  /** For `Allowance`. */
  forget(who: Allowance): void {
    if (this.#waiting.delete(who)) this.#wakeFirst();
  }

  #wait(who: Allowance): false {
    this.#waiting.add(who);
    return false;
  }

  #wakeFirst(): void {
    const [first] = this.#waiting;
    if (first !== undefined) queueMicrotask(first.onAvailable);
  }
}

/** What one connection holds. */
export class Allowance {
  readonly onAvailable: () => void;
  readonly #budget: ByteBudget;
  readonly #reserve: number;
  readonly #most: number;
  #held = 0;

  constructor(
    budget: ByteBudget,
    { reserve, most, onAvailable }: { reserve: number; most: number; onAvailable: () => void },
  ) {
    this.#budget = budget;
    this.#reserve = reserve;
    this.#most = most;
    this.onAvailable = onAvailable;
  }

  /** Bytes held. */
  get held(): number {
    return this.#held;
  }

  /** Whether it holds more than is its own. */
  get holdsShared(): boolean {
    return this.#held > this.#reserve;
  }

  /** Takes `bytes`, or says that they cannot be had now: then what it holds, or `onAvailable`, is to be waited for. */
  tryTake(bytes: number): boolean {
    const held = this.#held + bytes;
    if (this.#held > 0 && held > this.#most) return false;
    if (held > this.#reserve && !this.#budget.take(this, this.#shared(held) - this.#shared(this.#held))) return false;
    this.#held = held;
    return true;
  }

  give(bytes: number): void {
    const before = this.#shared(this.#held);
    this.#held -= bytes;
    if (before > 0) this.#budget.give(before - this.#shared(this.#held));
  }

  /** It does not wait any more, so that those behind it need not wait for it. What it holds it gives back later. */
  leave(): void {
    this.#budget.forget(this);
  }

  #shared(held: number): number {
    return Math.max(0, held - this.#reserve);
  }
}
