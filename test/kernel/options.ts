/** What the campaign with the kernel can be asked for, and what it does unasked: what CI has it do. */
import { type Campaign, campaign } from "../support/campaign.ts";

const OPTIONS = {
  /** Every state in every shape, both ways, ended by either; more kills, more legs. */
  all: 0,
  /** The number of one round trip, which is run alone. */
  only: -1,
  /** Boots that end in a kill. */
  kills: 1,
  /** The number of one of those, which is run alone. */
  kill: -1,
  /** How often a clone with little metadata goes there and back. */
  legs: 3,
};

/** What is to be run. */
export interface KernelCampaign extends Campaign {
  isAll: boolean;
  /** The only round trip to run, or the only kill: then nothing else is. Undefined where all are. */
  only: { trip: number | undefined; kill: number | undefined } | undefined;
  /** The words that run one of them again, alone. */
  again(option: "only" | "kill", number: number): string;
}

/** The campaign as asked for. */
export function kernelCampaign(): KernelCampaign {
  const asked = campaign(OPTIONS);
  const isAll = asked.option("all") !== 0;
  const [trip, kill] = (["only", "kill"] as const).map((name) => {
    const number = asked.option(name);
    return number === -1 ? undefined : number;
  });
  return {
    ...asked,
    isAll,
    only: trip === undefined && kill === undefined ? undefined : { trip, kill },
    // Which trip a number is depends on how many there are.
    again: (option, number) =>
      `npm run test:kernel -- --seed ${asked.seed}${isAll ? " --all" : ""} --${option} ${number}`,
  };
}
