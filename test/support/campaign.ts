/**
 * What a campaign (test/campaign.mjs) is asked for, and the figures that it prints at its end.
 *
 *     const { seed, share, report } = campaign({ states: 20_000 });
 */
import { appendFileSync } from "node:fs";

/** One shard's view of a campaign. */
export interface Campaign {
  /** Of this shard, another for each; `npm run … -- --seed N --shards M` gives the same ones again. */
  seed: number;
  /** This shard's number, from 0, and how many there are. */
  shard: number;
  shards: number;
  /** An option as given or as by default, for the whole campaign. */
  option(name: string): number;
  /** This shard's part of a number asked for: the parts of all add up to it. */
  share(name: string): number;
  /** Adds to the figures of the last line; each shard's are summed under the same words, in the order first named. */
  report(figures: Record<string, number>): void;
}

/**
 * @param defaults every option of the campaign and its default
 * @throws {RangeError} for an option given that the campaign does not have
 */
export function campaign(defaults: Record<string, number>): Campaign {
  const { CAMPAIGN_OPTIONS = "{}", CAMPAIGN_SHARD = "0", CAMPAIGN_FIGURES } = process.env;
  const given: Record<string, number> = JSON.parse(CAMPAIGN_OPTIONS);
  const { seed = 1, shards = 1, ...rest } = given;
  const options: Record<string, number> = { ...defaults, ...rest };
  const unknown = Object.keys(rest).find((name) => !(name in defaults));
  if (unknown !== undefined) {
    const known = Object.keys(defaults).map((name) => `--${name}`);
    throw new RangeError(`--${unknown} is no option of this campaign, which has ${known.join(", ")}`);
  }
  const shard = Number(CAMPAIGN_SHARD);
  const option = (name: string): number => {
    const value = options[name];
    if (value === undefined) throw new RangeError(`--${name} has no default`);
    return value;
  };
  return {
    // Far apart: what draws from seed, seed + 1, … in one shard must not meet the next shard's.
    seed: (seed + shard * 0x1000_0000) % 2 ** 32,
    shard,
    shards,
    option,
    share: (name) => Math.floor(option(name) / shards) + (shard < option(name) % shards ? 1 : 0),
    report: (figures) => {
      if (CAMPAIGN_FIGURES !== undefined) appendFileSync(CAMPAIGN_FIGURES, `${JSON.stringify(figures)}\n`);
    },
  };
}
