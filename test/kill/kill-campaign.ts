/** What all parts of the campaign `kill` are asked for, and what they count. */
import { type Campaign, campaign } from "../support/campaign.ts";
import { type SeededRandom, seededRandom } from "../support/random.ts";

/** The parts of the campaign, and the option that has one of each run alone: its number, from 1; 0 is all. */
const ALONE = {
  kills: "life",
  cuts: "cut-life",
  points: "point",
  stops: "stop",
  races: "race",
} as const;

/** One part of the campaign. */
export interface KillCampaign extends Campaign {
  /** How many this shard is to do: none where one of another part is to be run alone. */
  wanted: number;
  /** The number of what is to be run alone, or undefined. */
  only: number | undefined;
  /** The words that run one alone again, with more options where there are. */
  again(number: number, more?: string): string;
}

/**
 * - `kills` under load, of processes that hydrate or serve clients (generations.campaign.ts), `cuts` of the power of disks with a
 *   cache (power-cuts.campaign.ts), `points` at system calls (system-calls.campaign.ts; with `all-points` all that there are), `stops`
 *   of so many `stop-seconds` (stopped.campaign.ts), `races` (races.campaign.ts);
 * - `life`, `cut-life`, `stop` and `race`: that one alone, of the seed given, and `point` of a `command`.
 */
export function killCampaign(part: keyof typeof ALONE): KillCampaign {
  const asked = campaign({
    kills: 200,
    cuts: 24,
    points: 50,
    "all-points": 0,
    stops: 2,
    "stop-seconds": 10,
    races: 16,
    life: 0,
    "cut-life": 0,
    command: 0,
    point: 0,
    stop: 0,
    race: 0,
  });
  const isAnyAlone = Object.values(ALONE).some((name) => asked.option(name) > 0);
  const number = asked.option(ALONE[part]);
  const only = number > 0 ? number : undefined;
  return {
    ...asked,
    wanted: isAnyAlone ? Math.min(1, number) : asked.share(part),
    only,
    again: (each, more = "") =>
      `npm run test:kill -- --seed ${asked.seed} --shards 1${more === "" ? "" : ` ${more}`} --${ALONE[part]} ${each}`,
  };
}

/** Counts under words. */
export class Tally {
  readonly #counts = new Map<string, number>();

  add(what: string, count = 1): void {
    this.#counts.set(what, this.get(what) + count);
  }

  get(what: string): number {
    return this.#counts.get(what) ?? 0;
  }

  figures(): Record<string, number> {
    return Object.fromEntries(this.#counts);
  }
}

/**
 * Lets clones live, one after the other, each with random numbers of its own, until `enough` says so; or the one that was
 * asked for. What goes wrong in one is told with the words that make that one live again.
 */
export async function eachLife(
  { seed, only, again }: KillCampaign,
  tally: Tally,
  enough: () => boolean,
  live: (random: SeededRandom) => Promise<void>,
): Promise<void> {
  tally.add("violations", 0);
  for (let life = only ?? 1; !enough(); life++) {
    try {
      await live(seededRandom(seed + life * 0x9e37));
    } catch (error) {
      tally.add("violations");
      throw new Error(`life ${life} (${again(life)}): ${(error as Error).message}`, { cause: error });
    }
    if (only !== undefined) return;
  }
}
