// The kernel's dm-clone at the other end. A clone goes from this program to the kernel and back, or the other way round, in
// every kind of state. Whoever takes it over must find the same regions hydrated, by a look that does not read the metadata
// where the kernel is asked, the same status line and the same bytes; the kernel must have nothing to say in its log; what it
// leaves must be clean to `check`. All clones meet the same boot of one guest.
//
//     npm run test:kernel                    each state and each shape
//     npm run test:kernel -- --all           every state in every shape, both ways, ended by either
//     npm run test:kernel -- --only N        round trip N alone, with the seed that was printed (and --all, if that was)
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { seededRandom } from "../support/random.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { KernelGuest } from "./kernel-guest.ts";
import { kernelCampaign } from "./options.ts";
import { RelayedClone, type Shape } from "./relayed-clone.ts";
import type { Implementation } from "./requests.ts";
import { isKernelState, LARGE_SHAPES, LITTLE_METADATA, Relay, SHAPES, STATES } from "./round-trips.ts";

const { seed, option, report, isAll, only, again } = kernelCampaign();

interface Trip {
  name: string;
  shape: Shape;
  run(relay: Relay): Promise<void>;
}

const SIDES: readonly Implementation[] = ["ours", "kernel"];
const WHO = { ours: "us", kernel: "the kernel" };

/** Every state in every shape, both ways, ended by either; or each state and each shape, and each of them in some. */
function statesInShapes(): Trip[] {
  const trips: Trip[] = [];
  for (const [shapeIndex, [shapeName, shape]] of Object.entries(SHAPES).entries()) {
    for (const [stateIndex, state] of STATES.entries()) {
      for (const [firstIndex, first] of SIDES.entries()) {
        for (const [endingIndex, ending] of SIDES.entries()) {
          // What the kernel cannot make is ended by it.
          const isOneOfTwo = isKernelState(state)
            ? (stateIndex + firstIndex + endingIndex) % 2 === 0
            : ending === "kernel";
          const isChosen = stateIndex % Object.keys(SHAPES).length === shapeIndex && isOneOfTwo;
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

const all = [...statesInShapes(), ...otherTrips()].map((each, index) => [index, each] as const);
const trips = only === undefined ? all : all.filter(([index]) => index === only.trip);
if (only?.trip !== undefined && trips.length === 0) {
  throw new RangeError(`--only ${only.trip}: there are round trips 0 to ${all.length - 1}`);
}

const place = await scratchDirectory();
let guest: KernelGuest;

beforeAll(async () => {
  if (trips.length === 0) return;
  await mkdir(join(place.path, "guest"));
  guest = await KernelGuest.boot(join(place.path, "guest"));
  report({ "guest boots": 1 });
});

afterAll(async () => {
  await guest?.[Symbol.asyncDispose]();
  await place[Symbol.asyncDispose]();
});

test.runIf(trips.length === 0)("no round trip is made where only a kill is asked for", () => {});

test.for(trips)("round trip %i", async ([index, { name, shape, run }]) => {
  const cwd = join(place.path, `${index}`);
  await mkdir(cwd);
  const random = seededRandom(seed + index);
  const clone = await RelayedClone.prepare(cwd, shape, random);
  const relay = new Relay(guest, clone, random);
  try {
    await run(relay);
  } catch (error) {
    report({ violations: 1 });
    throw new Error(`${name} (${again("only", index)})`, { cause: error });
  } finally {
    report({ "round trips": 1, states: relay.states, violations: 0 });
  }
  expect(relay.states).toBeGreaterThan(0);
});
