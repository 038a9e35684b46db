// The kernel's dm-clone at the other end. A clone goes from this program to the kernel and back, or the other way round, in
// every kind of state. Whoever takes it over must find the same regions hydrated, by a look that does not read the metadata
// where the kernel is asked, the same status line and the same bytes; the kernel must have nothing to say in its log; what it
// leaves must be clean to `check`. All clones meet the same boot of one guest.
//
//     npm run test:kernel                    each state and each shape
//     npm run test:kernel -- --all           every state in every shape, both ways, ended by either
//     npm run test:kernel -- --only N        round trip N alone, with the seed that was printed
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { campaign } from "../support/campaign.ts";
import { seededRandom } from "../support/random.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { KernelGuest } from "./kernel-guest.ts";
import { OPTIONS } from "./options.ts";
import { RelayedClone, type Shape } from "./relayed-clone.ts";
import type { Implementation } from "./requests.ts";
import { isKernelState, LARGE_SHAPES, LITTLE_METADATA, Relay, SHAPES, STATES } from "./round-trips.ts";

const { seed, option, report } = campaign(OPTIONS);

interface Trip {
  name: string;
  shape: Shape;
  run(relay: Relay): Promise<void>;
}

const SIDES: readonly Implementation[] = ["ours", "kernel"];
const WHO = { ours: "us", kernel: "the kernel" };
const isAll = option("all") !== 0;

/** Every state in every shape, both ways, ended by either; or each state and each shape, and each of them in some. */
function statesInShapes(): Trip[] {
  const trips: Trip[] = [];
  for (const [shapeIndex, [shapeName, shape]] of Object.entries(SHAPES).entries()) {
    for (const [stateIndex, state] of STATES.entries()) {
      for (const [firstIndex, first] of SIDES.entries()) {
        for (const [endingIndex, ending] of SIDES.entries()) {
          const isChosen =
            stateIndex % Object.keys(SHAPES).length === shapeIndex && (stateIndex + firstIndex + endingIndex) % 2 === 0;
          if (!isAll && !isChosen) continue;
          const name = `${state}, ${shapeName}: by ${WHO[first]}, ended by ${WHO[ending]}`;
          if (first === "ours") trips.push({ name, shape, run: (relay) => relay.fromOurs(state, ending) });
          else if (isKernelState(state)) trips.push({ name, shape, run: (relay) => relay.fromKernel(state, ending) });
        }
      }
    }
  }
  return trips;
}

function otherTrips(): Trip[] {
  const legs = isAll ? 4 * option("legs") : option("legs");
  const count = isAll ? 100 : 20;
  const large = Object.entries(LARGE_SHAPES).flatMap(([name, shape]) =>
    SIDES.map((first) => ({
      name: `${name}: by ${WHO[first]}`,
      shape,
      // The kernel copies whole regions, zeros too: 3 GiB of them are no part of the short form.
      run: (relay: Relay) => relay.large(first, { endInKernel: isAll && name !== "beyond 2 TiB" }),
    })),
  );
  return [
    { name: "back and forth", shape: LITTLE_METADATA, run: (relay) => relay.backAndForth(legs) },
    { name: "the same commits", shape: LITTLE_METADATA, run: (relay) => relay.sameCommits(count) },
    ...(isAll ? large : large.filter((_, index) => index % 3 === 0)),
  ];
}

const place = await scratchDirectory();
await mkdir(join(place.path, "guest"));
const guest = await KernelGuest.boot(join(place.path, "guest"));
report({ "guest boots": 1 });

afterAll(async () => {
  await guest[Symbol.asyncDispose]();
  await place[Symbol.asyncDispose]();
});

test.for([...statesInShapes(), ...otherTrips()].map((each, index) => [index, each] as const))(
  "round trip %i",
  async ([index, { name, shape, run }]) => {
    if (option("only") !== -1 && option("only") !== index) return;
    const cwd = join(place.path, `${index}`);
    await mkdir(cwd);
    const clone = await RelayedClone.prepare(cwd, shape);
    const relay = new Relay(guest, clone, seededRandom(seed + index));
    try {
      await run(relay);
    } catch (error) {
      report({ violations: 1 });
      throw new Error(`${name} (npm run test:kernel -- --seed ${seed} --only ${index})`, { cause: error });
    } finally {
      report({ "round trips": 1, states: relay.states, violations: 0 });
    }
    expect(relay.states).toBeGreaterThan(0);
  },
);
