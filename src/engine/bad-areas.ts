/**
 * Gets what can be read out of areas that could not be read in large pieces, in the manner of GNU ddrescue (its manual,
 * "Algorithm"). An area is a run of units: regions, or sectors of one.
 *
 *     1. trim     ▒▒▒✗──────────✗▒▒▒   from its leading edge, unit by unit, to the first error; then from its trailing edge back
 *     2. scrape   ▒▒▒✗▒▒✗▒✗✗▒▒▒▒✗▒▒▒   what is left between the two, unit by unit
 *     3. retry    ▒▒▒✗▒▒▒▒✗✗▒▒▒▒▒▒▒▒   what has failed by itself, `retry` times, each round in the other direction
 *
 * Every area is trimmed before any is scraped, and all of that is done before anything is tried again: a disk that dies should
 * first give what it still can, and the edges of an area are more likely to be good than its middle.
 *
 * Areas are not halved on the way to the bad units. On a disk an error costs seconds, a good read milliseconds: this way there
 * is one error for each bad unit, and no unit is read twice; halving would meet each of them again in every half that holds
 * it, log2 of the area times.
 */
import { normalizeRanges } from "../metadata/unreadable-ranges.ts";
import { runParts } from "./run-parts.ts";

/** Half-open. */
export interface UnitRange {
  start: number;
  end: number;
}

/** Units that could not be read together. `error`: what came of it, where it is only one. */
export interface BadArea<E> extends UnitRange {
  error?: E | undefined;
}

/** What is to be done with them. */
export interface BadAreaParts<E> {
  /** Reads a unit, and does with it what is to be done; resolves to why it cannot be read, or to nothing. */
  tryUnit(unit: number): Promise<E | undefined>;
  /** A unit cannot be read. */
  giveUp(unit: number, error: E): void;
  /** Whether nothing more is to be tried, nor given up. */
  isOver(): boolean;
  /** How often a unit is tried again. */
  retry: number;
  /** Waits before round 1, 2, … of that. */
  pause(round: number): Promise<void>;
  /** Units that may have failed by themselves before they are tried again, and given up, ahead of everything else. */
  mostFailed: number;
  /** Areas at work at once. One for whatever has a head to move; more where each read is a round trip. */
  width: number;
}

/** A unit that could not be read by itself. */
interface Failed<E> {
  unit: number;
  error: E;
}

/** Works areas off until every unit of them has been read or given up. @throws what `tryUnit` or `pause` throws */
export async function rescueAreas<E>(areas: readonly BadArea<E>[], parts: BadAreaParts<E>): Promise<void> {
  const rescue = new Rescue(areas, parts);
  while (!rescue.isOver) {
    await rescue.trim();
    await rescue.scrape();
    await rescue.retry();
  }
}

/** Areas on their way from step to step. */
class Rescue<E> {
  readonly #parts: BadAreaParts<E>;
  #untrimmed: UnitRange[];
  #unscraped: UnitRange[] = [];
  #failed: Failed<E>[] = [];

  constructor(areas: readonly BadArea<E>[], parts: BadAreaParts<E>) {
    this.#parts = parts;
    this.#untrimmed = normalizeRanges(areas.filter(({ error }) => error === undefined));
    for (const { start, error } of areas) if (error !== undefined) this.#failed.push({ unit: start, error });
  }

  get isOver(): boolean {
    const left = this.#untrimmed.length + this.#unscraped.length + this.#failed.length;
    return left === 0 || this.#parts.isOver();
  }

  async trim(): Promise<void> {
    this.#untrimmed = await this.#each(this.#untrimmed, async (area) => {
      if (await this.#walk(area, "start")) return;
      if (await this.#walk(area, "end")) return;
      if (area.start < area.end) this.#unscraped.push({ ...area });
      area.start = area.end;
    });
  }

  async scrape(): Promise<void> {
    const areas = this.#unscraped.sort((a, b) => a.start - b.start).flatMap((area) => this.#shared(area));
    this.#unscraped = await this.#each(areas, async (area) => {
      while (area.start < area.end && !this.#isEnough) await this.#walk(area, "start");
    });
  }

  async retry(): Promise<void> {
    const { retry, pause, giveUp } = this.#parts;
    let waiting = this.#failed.sort((a, b) => a.unit - b.unit);
    this.#failed = [];
    for (let round = 1; round <= retry && waiting.length > 0 && !this.#parts.isOver(); round++) {
      await pause(round);
      if (round % 2 === 1) waiting.reverse();
      const again: Failed<E>[] = [];
      await this.#runAll(waiting, async ({ unit }) => {
        if (this.#parts.isOver()) return;
        const error = await this.#parts.tryUnit(unit);
        if (error !== undefined) again.push({ unit, error });
      });
      waiting = again.sort((a, b) => a.unit - b.unit);
    }
    for (const { unit, error } of waiting) {
      if (this.#parts.isOver()) return;
      giveUp(unit, error);
    }
  }

  /** Whether the next thing to do is no new unit. */
  get #isEnough(): boolean {
    return this.#failed.length > this.#parts.mostFailed || this.#parts.isOver();
  }

  /**
   * Tries the units of an area from one edge on, and takes them off it, until one has failed, which is taken off too. True
   * where none has, and the area is as it was left.
   */
  async #walk(area: UnitRange, edge: "start" | "end"): Promise<boolean> {
    while (area.start < area.end && !this.#isEnough) {
      const unit = edge === "start" ? area.start : area.end - 1;
      const error = await this.#parts.tryUnit(unit);
      if (edge === "start") area.start++;
      else area.end--;
      if (error === undefined) continue;
      this.#failed.push({ unit, error });
      return false;
    }
    return true;
  }

  /** An area, cut up for all that may work at it. */
  #shared({ start, end }: UnitRange): UnitRange[] {
    const most = Math.ceil((end - start) / this.#parts.width);
    const parts: UnitRange[] = [];
    for (let from = start; from < end; from += most) parts.push({ start: from, end: Math.min(end, from + most) });
    return parts;
  }

  /** Does a step for each area; resolves to what is left of them. */
  async #each(areas: UnitRange[], step: (area: UnitRange) => Promise<void>): Promise<UnitRange[]> {
    await this.#runAll(areas, step);
    return areas.filter(({ start, end }) => start < end);
  }

  async #runAll<T>(items: T[], run: (item: T) => Promise<void>): Promise<void> {
    await runParts(items.values(), this.#parts.width, run);
  }
}
