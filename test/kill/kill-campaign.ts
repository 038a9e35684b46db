/** What all parts of the campaign `kill` are asked for, and what they count. */
import { type Campaign, campaign } from "../support/campaign.ts";
import { type SeededRandom, seededRandom } from "../support/random.ts";

/**
 * - `kills` of processes at random moments (generations.campaign.ts), `cuts` of the power of disks with a cache
 *   (power-cuts.campaign.ts), `points` at system calls (system-calls.campaign.ts; with `all-points` all that there are), `stops` of so many
 *   `stop-seconds` (stopped.campaign.ts), `races` (races.campaign.ts);
 * - `life`: only the clone's life of that number, counted from 1, of the seed given; 0 is all.
 */
export function killCampaign(): Campaign {
  return campaign({
    kills: 200,
    cuts: 24,
    points: 50,
    "all-points": 0,
    stops: 2,
    "stop-seconds": 10,
    races: 16,
    life: 0,
  });
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
  { seed, option }: Campaign,
  tally: Tally,
  enough: () => boolean,
  live: (random: SeededRandom) => Promise<void>,
): Promise<void> {
  const only = option("life");
  tally.add("violations", 0);
  for (let life = Math.max(only, 1); !enough(); life++) {
    try {
      await live(seededRandom(seed + life * 0x9e37));
    } catch (error) {
      tally.add("violations");
      const again = `npm run test:kill -- --seed ${seed} --shards 1 --life ${life}`;
      throw new Error(`life ${life} (${again}): ${(error as Error).message}`, { cause: error });
    }
    if (only > 0) return;
  }
}
