/**
 * What the bytes of a disk may be, told from the changes that clients asked for: each byte is a register on its own.
 *
 * A read may find a change where it was asked for before the read ended, and no other change that was certainly made lies
 * between the two: begun after that one ended, ended before the read began. What overlaps in time may be in either order.
 * A change that failed, and a discard, may have been made or not. After the power has failed only what a flush or FUA has
 * made durable counts as certainly made.
 */

/** A change of bytes, made or being made. */
export interface ByteChange {
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly begunAt: number;
  /** Infinity while it is under way. Whatever it does, it has done before. */
  endedAt: number;
  /** Whether it has certainly been made, once it has ended. */
  certain: boolean;
  durable: boolean;
}

/** The changes of one disk, and what they allow. */
export class ByteHistory {
  readonly #changes: ByteChange[];
  #now = 1;

  /** `content`: what it holds, durably. */
  constructor(content: Uint8Array) {
    this.#changes = [
      { offset: 0, bytes: Uint8Array.from(content), begunAt: 0, endedAt: 0, certain: true, durable: true },
    ];
  }

  /** What is known at this moment, to be asked later. */
  snapshot(): ByteHistory {
    const copy = new ByteHistory(new Uint8Array());
    copy.#changes.splice(0, 1, ...this.#changes.map((change) => ({ ...change })));
    copy.#now = this.#now;
    return copy;
  }

  /** A moment, for `check()` and `flushed()`. */
  now(): number {
    return this.#now++;
  }

  /** A change is asked for; `bytes` stay the caller's. */
  begin(offset: number, bytes: Uint8Array): ByteChange {
    const begunAt = this.#now++;
    const change = {
      offset,
      bytes: Uint8Array.from(bytes),
      begunAt,
      endedAt: Infinity,
      certain: false,
      durable: false,
    };
    this.#changes.push(change);
    return change;
  }

  /** It was answered. */
  end(change: ByteChange, { certain, durable = false }: { certain: boolean; durable?: boolean }): void {
    change.endedAt = this.#now++;
    change.certain = certain;
    change.durable = durable;
  }

  /** A flush that was asked for at `askedAt` has succeeded. */
  flushed(askedAt: number): void {
    for (const change of this.#changes) if (change.endedAt < askedAt) change.durable = true;
  }

  /** What is wrong with bytes that were read, a sentence; the read began at `begunAt` and has just ended. */
  check(offset: number, actual: Uint8Array, begunAt: number): string | undefined {
    return this.#check(offset, actual, (change) => change.certain && change.endedAt < begunAt);
  }

  /** The same of bytes that a disk holds after the power has failed. */
  checkAfterPowerLoss(offset: number, actual: Uint8Array): string | undefined {
    return this.#check(offset, actual, (change) => change.certain && change.durable);
  }

  #check(offset: number, actual: Uint8Array, isCertain: (change: ByteChange) => boolean): string | undefined {
    const end = offset + actual.length;
    const touching = this.#changes.filter((change) => change.offset < end && endOf(change) > offset);
    const cuts = [...new Set(touching.flatMap((change) => [change.offset, endOf(change)]))]
      .filter((cut) => cut > offset && cut < end)
      .sort((a, b) => a - b);
    for (const [index, to] of [...cuts, end].entries()) {
      const from = index === 0 ? offset : (cuts[index - 1] as number);
      const covering = touching.filter((change) => change.offset <= from && endOf(change) >= to);
      const certain = covering.filter(isCertain);
      const allowed = covering.filter((change) => !certain.some((later) => change.endedAt < later.begunAt));
      const found = actual.subarray(from - offset, to - offset);
      const wrong = firstWrong(found, from, allowed);
      if (wrong !== undefined) {
        const may = allowed.map((change) => `${change.bytes[wrong - change.offset]} of ${change.begunAt}`).join(", ");
        return `byte ${wrong} is ${actual[wrong - offset]}, and may be ${may}`;
      }
    }
    return undefined;
  }
}

function endOf({ offset, bytes }: ByteChange): number {
  return offset + bytes.length;
}

/** The first byte of `found`, which begins at `from`, that no change explains. */
function firstWrong(found: Uint8Array, from: number, allowed: ByteChange[]): number | undefined {
  const parts = allowed.map(({ offset, bytes }) => bytes.subarray(from - offset, from - offset + found.length));
  if (parts.some((part) => Buffer.compare(part, found) === 0)) return undefined;
  for (let index = 0; index < found.length; index++) {
    if (!parts.some((part) => part[index] === found[index])) return from + index;
  }
  return undefined;
}
