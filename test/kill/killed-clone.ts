/**
 * A clone whose processes are killed, and what is known of it: a model of what its disk may hold after each kill. It is
 * looked at as it lies on the disks, without any process of ours at work:
 *
 * - nothing stands in the directory that was not there before or belongs there;
 * - `check` has nothing to say, not even a warning;
 * - the destination where a region is hydrated, the source where it is not, are together what the model allows.
 */
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { DiskModel } from "../support/disk-model.ts";
import { allocatedBytes } from "../support/files.ts";
import type { SeededRandom } from "../support/random.ts";
import { RandomClients } from "../support/random-clients.ts";
import { cloneOk, oneJson, type StartedClone, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { SECTOR, stampSectors, ZEROS } from "../support/stamped-sectors.ts";
import type { Disks } from "./disks.ts";
import type { Tally } from "./kill-campaign.ts";

/** The stamp of what the source holds; those of clients are larger. */
const SOURCE_STAMP = 1;
/** What may stand beside a clone that was killed: itself, and what the next process takes the place of. */
const EXPECTED = /^(disk\.img|copy\.(img|meta)(\.clone(\.sock~?)?)?|[a-z]+\.sock|serve\d+\.pid|uri|mnt|tmp)$/;

/** How a clone is made. */
export interface KilledCloneRequest {
  random: SeededRandom;
  tally: Tally;
  disks: (cwd: string) => Disks;
  /** Bytes. */
  size: number;
}

/** How far a clone is. */
export type CloneState = "new" | "unfinished" | "hydrated" | "finalized" | "gone";

export class KilledClone implements AsyncDisposable {
  readonly cwd: string;
  readonly size: number;
  readonly regionSize: number;
  readonly disks: Disks;
  readonly model: DiskModel;
  readonly clients: RandomClients;
  /** As it was when it was last looked at. */
  state: CloneState = "new";
  readonly #request: KilledCloneRequest;
  readonly #source: Buffer;
  readonly #dispose: () => Promise<void>;

  private constructor(cwd: string, request: KilledCloneRequest, source: number[], dispose: () => Promise<void>) {
    this.cwd = cwd;
    this.#request = request;
    this.size = request.size;
    this.regionSize = request.random.pick([4096, 16384, 65536, 65536, 262144]);
    this.disks = request.disks(cwd);
    this.model = new DiskModel(source);
    this.clients = new RandomClients(this.model, request.random, SOURCE_STAMP + 1, {
      discards: this.disks.discardsToZeros,
    });
    this.#source = Buffer.alloc(request.size);
    for (const [sector, stamp] of source.entries()) {
      if (stamp === ZEROS) continue;
      stampSectors(this.#source.subarray(sector * SECTOR, (sector + 1) * SECTOR), sector, stamp);
    }
    this.#dispose = dispose;
  }

  /** Makes a source with holes; the clone of it is still to be created. */
  static async begin(request: KilledCloneRequest): Promise<KilledClone> {
    const place = await scratchDirectory();
    const source = randomSource(request.size / SECTOR, request.random);
    const clone = new KilledClone(place.path, request, source, async () => await place[Symbol.asyncDispose]());
    await writeFile(clone.path("disk.img"), clone.#source);
    await mkdir(clone.path("tmp"));
    return clone;
  }

  path(name: string): string {
    return join(this.cwd, name);
  }

  /** Environment in which nothing of ours is looked for elsewhere. */
  get env(): Record<string, string> {
    return { TMPDIR: this.path("tmp"), XDG_RUNTIME_DIR: this.path("tmp") };
  }

  /** The words that create it. */
  createArgs(): string[] {
    return ["create", "disk.img", "copy.img", "--region-size", `${this.regionSize}`];
  }

  start(args: readonly string[]): StartedClone {
    return startClone(args, { cwd: this.cwd, env: this.env, longestMs: 120_000 });
  }

  async ok(args: readonly string[]): Promise<string> {
    return await cloneOk(args, { cwd: this.cwd, env: this.env });
  }

  /** Looks at what is on the disks, which must be off, with no process at work. Afterwards all of it is known. */
  async look(when: string): Promise<CloneState> {
    const { tally } = this.#request;
    const strange = (await readdir(this.cwd)).filter((name) => !EXPECTED.test(name));
    expect(strange, `left behind, ${when}`).toEqual([]);
    const { destinationFile, metadataFile } = this.disks;
    if (!existsSync(metadataFile)) {
      // Without metadata the destination is as it was made, empty, or whole.
      const isNew =
        this.state === "new" && !(existsSync(destinationFile) && (await allocatedBytes(destinationFile)) > 0);
      if (isNew) return this.state;
      tally.add("regions compared", Math.ceil(this.size / this.regionSize));
      this.clients.hold(this.model.settle(await readFile(destinationFile)), `on the destination alone, ${when}`);
      this.state = "gone";
      return this.state;
    }
    const [checked, dumped, destination] = await Promise.all([
      this.ok(["check", metadataFile, "--json"]),
      this.ok(["dump", metadataFile, "--json"]),
      readFile(destinationFile),
    ]);
    expect(oneJson(checked), when).toEqual({ ok: true, fatal: [], warnings: [] });
    const dump = oneJson<Dump>(dumped);
    expect(dump, when).toMatchObject({ size: this.size, regionSize: this.regionSize });
    const seen = Buffer.from(this.#source);
    let hydrated = 0;
    for (const [start, end] of dump.hydrated) {
      hydrated += end - start;
      destination.copy(seen, start * this.regionSize, start * this.regionSize, end * this.regionSize);
    }
    tally.add("regions compared", dump.regions);
    this.clients.hold(this.model.settle(seen), `on the disks, ${when}`);
    const whole = hydrated === dump.regions ? "hydrated" : "unfinished";
    this.state = dump.descriptor?.finalized ? "finalized" : whole;
    return this.state;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.disks.off();
    await this.#dispose();
  }
}

interface Dump {
  size: number;
  regionSize: number;
  regions: number;
  hydrated: [start: number, end: number][];
  descriptor: { finalized: object | null } | null;
}

/** Stamps of a source's sectors: data, with runs of zeros of many sizes in it. */
function randomSource(sectors: number, random: SeededRandom): number[] {
  const stamps = new Array<number>(sectors).fill(SOURCE_STAMP);
  const holes = random.pick([0, 3, 12]);
  for (let hole = 0; hole < holes; hole++) {
    const start = random.integer(0, sectors - 1);
    stamps.fill(ZEROS, start, start + random.pick([1, 8, 100, 1000]));
  }
  return stamps;
}
