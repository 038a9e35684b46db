/**
 * What is on its way from the source, or has come and is not used up yet, so that nobody asks for it a second time.
 *
 *     fetch()          ──► parts that nobody else has: entered here, ascending and disjoint
 *                      └─► parts that somebody has:    joined, or taken at once where they have come
 *     Fetch.run(ask)   ──► asks for its own parts; whoever joined one gets its bytes in the same turn of the event loop
 *                          in which they come, before their owner may change or release them
 *     Fetch.release()  ──► its parts are nobody's any more: the bytes are at the destination, or nobody wants them
 *
 *     a part:   entered ──run()──► asked ──► here ──release()──► gone
 *                  │                 └─ failed ──────────────► gone ┐ whoever joined it asks for itself, and
 *                  └──release(), without a run()─────────────► gone ┘ meets an error of its own
 *
 *     Fetch.drop()     ──► it waits for nobody's bytes any more: who gave up must not cost memory when they come after all
 *
 * It is sound because a source does not change while it is cloned: its bytes are right whenever they were read. Whether
 * they are still what is wanted (the region may be another's by now) is decided before, by whoever asks, as it is for bytes
 * that come from the source itself.
 */
import assert from "node:assert";
import type { ByteRange } from "../base/geometry.ts";

/** Asks the source itself: fills `bytes` from `offset`. */
export type Ask = (offset: number, bytes: Uint8Array) => Promise<void>;

/** The reads of one source under way, of all who read it. */
export class ReadsInFlight {
  /** Ascending and disjoint. */
  readonly #parts: OwnPart[] = [];

  /** Runs of bytes that somebody has asked for, or has. */
  get count(): number {
    return this.#parts.length;
  }

  /**
   * Begins to read a range, in this very turn: from here on others find its bytes here. `memory` gives the memory for the
   * whole range, which is the fetch's own until it is released; it is asked once, when the first bytes come.
   */
  fetch(range: ByteRange, memory: () => Uint8Array): Fetch {
    return new Fetch(this.#parts, range, memory);
  }
}

/** One read of a range of the source. `release()` must follow, when it does not run any more. */
export class Fetch {
  readonly #offset: number;
  /** Of all fetches. */
  readonly #parts: OwnPart[];
  readonly #memory: () => Uint8Array;
  #bytes: Uint8Array | undefined;
  readonly #own: OwnPart[] = [];
  readonly #joined: JoinedPart[] = [];

  /** Is made by `ReadsInFlight.fetch()`. */
  constructor(parts: OwnPart[], { offset, length }: ByteRange, memory: () => Uint8Array) {
    this.#offset = offset;
    this.#parts = parts;
    this.#memory = memory;
    const end = offset + length;
    let index = indexBehind(parts, offset);
    for (let position = offset; position < end; index++) {
      const part = parts[index];
      if (part === undefined || part.offset > position) {
        const gapEnd = Math.min(end, part?.offset ?? end);
        const own: OwnPart = { offset: position, end: gapEnd, owner: this, state: "entered", joiners: new Set() };
        this.#own.push(own);
        parts.splice(index, 0, own);
        position = gapEnd;
      } else {
        const partEnd = Math.min(end, part.end);
        this.#join(part, position, partEnd);
        position = partEnd;
      }
    }
  }

  /** Its memory, where that has been needed already. */
  get taken(): Uint8Array | undefined {
    return this.#bytes;
  }

  /** Memory for the range; full when `run()` has resolved. */
  get bytes(): Uint8Array {
    this.#bytes ??= this.#memory();
    return this.#bytes;
  }

  /** Bytes that nobody else had, for which it asks. */
  get ownBytes(): number {
    return this.#own.reduce((sum, { offset, end }) => sum + end - offset, 0);
  }

  /** Whether it waits for bytes that their owner has not asked for yet. */
  get waitsForTurn(): boolean {
    return this.#joined.some(({ from, state }) => state === "waiting" && from.state === "entered");
  }

  /**
   * Resolves when all bytes are here; settles only when nothing of it is under way any more. May be called once.
   * @throws what `ask` throws, for its own parts and for those that others did not get
   */
  async run(ask: Ask): Promise<void> {
    const parts = [
      ...this.#own.map((part) => this.#ask(part, ask)),
      ...this.#joined
        .filter(({ state }) => state === "waiting" || state === "failed")
        .map((part) => this.#wait(part, ask)),
    ];
    if (parts.length <= 1) return await parts[0];
    const failed = (await Promise.allSettled(parts)).find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  /**
   * Nobody wants its bytes any more, though it may run: what it waits for from others does not come to it. `run()` resolves, with
   * bytes that mean nothing, as soon as what it asks for itself has ended.
   */
  drop(): void {
    for (const part of this.#joined) {
      if (part.state !== "waiting") continue;
      part.from.joiners.delete(part);
      part.state = "dropped";
      part.settle?.();
    }
  }

  /** Nobody finds its bytes here any more. Any number of times, but not while it runs. */
  release(): void {
    for (const part of this.#own.splice(0)) {
      assert(part.state !== "asked", "a read was released that is still under way");
      this.#remove(part);
      if (part.state === "entered") this.#fail(part);
    }
    for (const part of this.#joined.splice(0)) part.from.joiners.delete(part);
  }

  #join(from: OwnPart, offset: number, end: number): void {
    const part: JoinedPart = { offset, end, from, joiner: this, state: "waiting", settle: undefined };
    this.#joined.push(part);
    if (from.state === "here") this.#take(part);
    else from.joiners.add(part);
  }

  async #ask(part: OwnPart, ask: Ask): Promise<void> {
    part.state = "asked";
    try {
      await ask(part.offset, this.#view(part));
    } catch (error) {
      this.#own.splice(this.#own.indexOf(part), 1);
      this.#remove(part);
      this.#fail(part);
      throw error;
    }
    part.state = "here";
    for (const joined of part.joiners) joined.joiner.#take(joined);
    part.joiners.clear();
  }

  async #wait(part: JoinedPart, ask: Ask): Promise<void> {
    if (part.state === "waiting") {
      await new Promise<void>((settle) => {
        part.settle = settle;
      });
    }
    if (part.state === "failed") await ask(part.offset, this.#view(part));
  }

  /** Copies what has come to where it is wanted, in this turn. */
  #take(part: JoinedPart): void {
    this.#view(part).set(part.from.owner.#view(part));
    part.state = "here";
    part.settle?.();
  }

  #fail({ joiners }: OwnPart): void {
    for (const part of joiners) {
      part.state = "failed";
      part.settle?.();
    }
    joiners.clear();
  }

  #view({ offset, end }: { offset: number; end: number }): Uint8Array {
    return this.bytes.subarray(offset - this.#offset, end - this.#offset);
  }

  #remove(part: OwnPart): void {
    const index = indexBehind(this.#parts, part.offset);
    assert(this.#parts[index] === part, "a read under way is not where it belongs");
    this.#parts.splice(index, 1);
  }
}

/** A run of bytes that a fetch asks for itself. */
interface OwnPart {
  readonly offset: number;
  readonly end: number;
  readonly owner: Fetch;
  state: "entered" | "asked" | "here";
  /** Those who wait for it. */
  readonly joiners: Set<JoinedPart>;
}

/** A run of bytes that a fetch gets from another. */
interface JoinedPart {
  readonly offset: number;
  readonly end: number;
  readonly from: OwnPart;
  readonly joiner: Fetch;
  state: "waiting" | "here" | "failed" | "dropped";
  /** Wakes the one who waits for it. */
  settle: (() => void) | undefined;
}

/** Index of the first part that ends behind `offset`. */
function indexBehind(parts: readonly OwnPart[], offset: number): number {
  let low = 0;
  let high = parts.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((parts[middle] as OwnPart).end <= offset) low = middle + 1;
    else high = middle;
  }
  return low;
}
