import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Geometry } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { type Hydration, RegionMap, type RegionState } from "../../../src/engine/region-map.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";

const REGIONS = 150; // several words of the bitmap, and not whole ones

async function newMetadata(device = new MemoryDevice({ size: 64 * 4096 })): Promise<CloneMetadata> {
  const geometry = new Geometry({ size: REGIONS * 4096, regionSize: 4096 });
  await CloneMetadata.create(device, { geometry, blockCount: 64 });
  return CloneMetadata.open(device);
}

/** What is known of the regions without any code of src. */
interface Model {
  states: RegionState[];
}
interface Real {
  map: RegionMap;
  running: Hydration[];
}

/** The first run of unhydrated regions from `from` on, below `end`, at most `limit`. */
function firstRun({ states }: Model, from: number, end: number, limit: number) {
  const start = states.indexOf("unhydrated", from);
  if (start < 0 || start >= end) return undefined;
  let next = start;
  while (next < Math.min(end, start + limit) && states[next] === "unhydrated") next++;
  return { start, end: next };
}

function agree(model: Model, { map }: Real): void {
  expect(Array.from({ length: REGIONS }, (_, region) => map.state(region))).toEqual(model.states);
  expect(map.hydratedCount).toBe(model.states.filter((state) => state === "hydrated").length);
  expect(map.hydratingCount).toBe(model.states.filter((state) => state === "hydrating").length);
}

type Command = fc.Command<Model, Real>;

/** Looks for the next run, and begins it unless told not to. */
class Next implements Command {
  readonly from: number;
  readonly end: number;
  readonly limit: number;
  readonly begins: boolean;

  constructor(from: number, end: number, limit: number, begins: boolean) {
    this.from = from;
    this.end = end;
    this.limit = limit;
    this.begins = begins;
  }
  check(): boolean {
    return true;
  }
  run(model: Model, real: Real): void {
    const expected = firstRun(model, this.from, this.end, this.limit);
    const found = real.map.nextUnhydrated(this.from, this.end, this.limit);
    expect(found).toEqual(expected);
    if (!this.begins || found === undefined) return;
    real.running.push(real.map.begin(found));
    model.states.fill("hydrating", found.start, found.end);
    agree(model, real);
  }
  toString(): string {
    return `next(${this.from}, ${this.end}, ${this.limit}, ${this.begins})`;
  }
}

/** Begins any range, which only works where all of it is unhydrated. */
class Begin implements Command {
  readonly start: number;
  readonly length: number;

  constructor(start: number, length: number) {
    this.start = start;
    this.length = length;
  }
  check(): boolean {
    return this.start + this.length <= REGIONS;
  }
  run(model: Model, real: Real): void {
    const range = { start: this.start, end: this.start + this.length };
    if (model.states.slice(range.start, range.end).every((state) => state === "unhydrated")) {
      real.running.push(real.map.begin(range));
      model.states.fill("hydrating", range.start, range.end);
    } else {
      expect(() => real.map.begin(range)).toThrow(/is (being )?hydrated already/);
    }
    agree(model, real);
  }
  toString(): string {
    return `begin(${this.start}, ${this.length})`;
  }
}

/** Ends one of the running hydrations. */
class End implements Command {
  readonly which: number;
  readonly how: "complete" | "fail";

  constructor(which: number, how: "complete" | "fail") {
    this.which = which;
    this.how = how;
  }
  check(): boolean {
    return true;
  }
  run(model: Model, real: Real): void {
    const [hydration] = real.running.splice(this.which % Math.max(1, real.running.length), 1);
    if (hydration === undefined) return;
    real.map[this.how](hydration);
    model.states.fill(this.how === "complete" ? "hydrated" : "unhydrated", hydration.start, hydration.end);
    agree(model, real);
    expect(() => real.map.fail(hydration)).toThrow("are not being hydrated");
  }
  toString(): string {
    return `${this.how}(${this.which})`;
  }
}

describe("RegionMap", () => {
  test("agrees with a list of states, whatever is begun, completed and failed in whatever order", async () => {
    const region = fc.nat(REGIONS - 1);
    const length = fc.oneof(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: REGIONS }));
    await fc.assert(
      fc.asyncProperty(
        fc.commands(
          [
            fc
              .tuple(fc.nat(REGIONS), fc.oneof(fc.constant(REGIONS), fc.nat(REGIONS)), length, fc.boolean())
              .map(([from, end, limit, begins]) => new Next(from, end, limit, begins)),
            fc.tuple(region, length).map(([start, count]) => new Begin(start, count)),
            fc
              .tuple(fc.nat(100), fc.constantFrom<"complete" | "fail">("complete", "fail"))
              .map(([which, how]) => new End(which, how)),
          ],
          { maxCommands: 60 },
        ),
        async (commands) => {
          const metadata = await newMetadata();
          const setup = () => ({
            model: { states: new Array<RegionState>(REGIONS).fill("unhydrated") },
            real: { map: new RegionMap(metadata), running: [] },
          });
          fc.modelRun(setup, commands);
        },
      ),
      { numRuns: 80 },
    );
  });

  test("calls regions hydrated that the metadata on disk does", async () => {
    const metadata = await newMetadata();
    metadata.markHydrated({ start: 10, end: 20 });
    const map = new RegionMap(metadata);
    expect(map.regionCount).toBe(REGIONS);
    expect([map.state(9), map.state(10), map.state(19), map.state(20)]).toEqual([
      "unhydrated",
      "hydrated",
      "hydrated",
      "unhydrated",
    ]);
    expect(map.nextUnhydrated(5, REGIONS, 100)).toEqual({ start: 5, end: 10 });
    expect(map.nextUnhydrated(10, REGIONS, 7)).toEqual({ start: 20, end: 27 });
  });

  test("begins no empty range and none beyond the last region", async () => {
    const map = new RegionMap(await newMetadata());
    expect(() => map.begin({ start: 3, end: 3 })).toThrow("no region in 3–3");
    expect(() => map.begin({ start: 149, end: 151 })).toThrow("no region in 149–151");
  });

  test("complete() marks nothing once a commit has failed, and takes the run off the table all the same", async () => {
    const memory = new MemoryDevice({ size: 64 * 4096 });
    await newMetadata(memory);
    const faulty = new FaultyDevice(memory, { failWrite: () => true });
    const metadata = await CloneMetadata.open(faulty);
    const map = new RegionMap(metadata);
    map.complete(map.begin({ start: 0, end: 4 }));
    const late = map.begin({ start: 4, end: 8 });
    metadata.preCommit();
    await expect(metadata.commit()).rejects.toThrow("EIO");
    map.complete(late);
    expect(map.hydratingCount).toBe(0);
    expect(map.state(4)).toBe("unhydrated");
    expect(map.hydratedCount).toBe(4);
  });
});
