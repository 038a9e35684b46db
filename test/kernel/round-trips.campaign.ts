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
import { RelayedClone } from "./relayed-clone.ts";
import type { Implementation } from "./requests.ts";
import { Relay, SHAPES, STATES, type State } from "./round-trips.ts";

const { seed, option, report } = campaign({ all: 0, only: -1, legs: 3 });

interface Trip {
  name: string;
  shape: keyof typeof SHAPES;
  run(relay: Relay): Promise<void>;
}

function trip(shape: keyof typeof SHAPES, state: State, first: Implementation, ending: Implementation): Trip {
  const name = `${state}, ${shape}: by ${first === "ours" ? "us" : "the kernel"}, ended by ${ending === "ours" ? "us" : "the kernel"}`;
  return {
    name,
    shape,
    run: (relay) =>
      first === "ours" || state === "killed" ? relay.fromOurs(state, ending) : relay.fromKernel(state, ending),
  };
}

/** Every state in every shape, or each of both once in each direction. */
function allTrips(): Trip[] {
  const shapes = Object.keys(SHAPES) as (keyof typeof SHAPES)[];
  const sides: Implementation[] = ["ours", "kernel"];
  const wanted = (state: number, shape: number, first: number, ending: number): boolean =>
    option("all") !== 0 || ((state + shape) % 7 === 0 && (state + ending + first) % 2 === 0);
  return shapes.flatMap((shape, b) =>
    STATES.flatMap((state, a) =>
      sides.flatMap((first, c) =>
        sides.flatMap((ending, d) =>
          wanted(a, b, c, d) && !(state === "killed" && first === "kernel") ? [trip(shape, state, first, ending)] : [],
        ),
      ),
    ),
  );
}

const place = await scratchDirectory();
await mkdir(join(place.path, "guest"));
const guest = await KernelGuest.boot(join(place.path, "guest"));
report({ "guest boots": 1 });

afterAll(async () => {
  await guest[Symbol.asyncDispose]();
  await place[Symbol.asyncDispose]();
});

test.for(allTrips().map((each, index) => [index, each] as const))(
  "round trip %i",
  async ([index, { name, shape, run }]) => {
    if (option("only") !== -1 && option("only") !== index) return;
    const cwd = join(place.path, `${index}`);
    await mkdir(cwd);
    const clone = await RelayedClone.prepare(cwd, SHAPES[shape]);
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
