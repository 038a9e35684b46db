/**
 * A clone in the hands of the kernel: its files are plugged into the guest, where dmsetup makes a device of them.
 *
 * What the kernel takes for hydrated is found without reading the metadata: over a source of zeros and a destination of
 * errors, a region is hydrated if and only if reading it fails.
 */
import { truncate, writeFile } from "node:fs/promises";
import { GUEST_IO, type GuestDisks, type GuestJob, type KernelGuest } from "./kernel-guest.ts";
import type { RelayedClone } from "./relayed-clone.ts";
import type { CloneRequest, Piece } from "./requests.ts";

/** What metadata says, by the kernel. */
export interface KernelView {
  ranges: [start: number, end: number][];
  /** The line of `dmsetup status`. */
  status: string;
}

/** Regions of a clone up to which all are asked for. */
const MOST_PROBED = 2 ** 16;

type DiskName = "metadata" | "destination" | "source" | "data" | "out";

/** Features and core arguments with which small clones are hydrated at once, when they are told to. */
const QUICKLY = "1 no_hydration 4 hydration_threshold 64 hydration_batch_size 16";

let sessions = 0;

export class KernelSession {
  readonly #guest: KernelGuest;
  readonly #clone: RelayedClone;
  readonly #disks: GuestDisks<DiskName>;
  /** Of the device-mapper device. */
  readonly name: string;

  private constructor(guest: KernelGuest, clone: RelayedClone, disks: GuestDisks<DiskName>) {
    this.#guest = guest;
    this.#clone = clone;
    this.#disks = disks;
    sessions += 1;
    this.name = `clone${sessions}`;
  }

  /** Plugs the files in; nothing is opened yet. */
  static async attach(guest: KernelGuest, clone: RelayedClone): Promise<KernelSession> {
    await writeFile(clone.path("out.img"), "");
    await truncate(clone.path("out.img"), clone.expected.geometry.size);
    const disks = await guest.attach({
      metadata: { file: clone.path("metadata") },
      destination: { file: clone.path("destination.img") },
      source: { file: clone.path("source.img"), readOnly: true },
      data: { file: clone.path("data.img"), readOnly: true },
      out: { file: clone.path("out.img") },
    });
    return new KernelSession(guest, clone, disks);
  }

  /** The table line of the clone. */
  table(options = QUICKLY): string {
    const { sectors, regionSectors } = this.#clone.shape;
    const { metadata, destination, source } = this.#disks.paths;
    return `0 ${sectors} clone ${metadata} ${destination} ${source} ${regionSectors} ${options}`;
  }

  /**
   * Asks the kernel what the metadata says, and leaves it as it is. Of a clone with very many regions only some are asked for:
   * those around the ends of `claimed` ranges, which are taken for true if they are.
   */
  async view(claimed: KernelView["ranges"]): Promise<KernelView> {
    const { regionCount, regionSize } = this.#clone.expected.geometry;
    const points = regionCount > MOST_PROBED ? pointsOf(claimed, regionCount) : undefined;
    const probing =
      points === undefined
        ? `probe /dev/mapper/NAME ${regionSize}`
        : `probe-at /dev/mapper/NAME ${regionSize} <<END\n${points.join("\n")}\nEND`;
    const { sectors, regionSectors } = this.#clone.shape;
    const probe = `${this.name}-probe`;
    const told = await this.#guest.run(`
dmsetup create ${probe}-zeros --table "0 ${sectors} zero"
dmsetup create ${probe}-errors --table "0 ${sectors} error"
dmsetup create ${probe} --table "0 ${sectors} clone ${this.#disks.paths.metadata} \
/dev/mapper/${probe}-errors /dev/mapper/${probe}-zeros ${regionSectors} 1 no_hydration"
dmsetup status --noflush ${probe}
${GUEST_IO} ${probing.replace("NAME", probe)}
dmsetup remove ${probe}
dmsetup remove ${probe}-errors ${probe}-zeros`);
    const [status = "", ...lines] = told.trimEnd().split("\n");
    const pairs = lines.map((line) => line.split(" ").map(Number) as [number, number]);
    if (points === undefined) return { ranges: pairs, status };
    const isClaimed = (region: number) => claimed.some(([start, end]) => start <= region && region < end);
    const wrong = pairs.filter(([region, hydrated]) => isClaimed(region) !== (hydrated === 1));
    return { ranges: wrong.length === 0 && pairs.length === points.length ? claimed : wrong, status };
  }

  /** Makes the device; metadata whose first block is zeros is formatted. */
  async open(options = QUICKLY): Promise<void> {
    await this.#guest.run(`dmsetup create ${this.name} --table "${this.table(options)}"`);
  }

  /** Carries requests out, one after the other. */
  async request(requests: readonly CloneRequest[]): Promise<void> {
    await this.#guest.run(this.#requestScript(requests));
    for (const request of requests) this.#clone.expected.apply(request, this.#clone.data, "kernel");
  }

  /** Lets requests run with hydration beside them; every flush says `NAME:HOW-MANY-ARE-DURABLE`. Until the guest is killed. */
  script(requests: readonly CloneRequest[]): string {
    return `dmsetup message ${this.name} 0 enable_hydration\n${this.#requestScript(requests, this.name)}`;
  }

  #requestScript(requests: readonly CloneRequest[], report?: string): string {
    const lines = requests.map((request, index) => {
      if (request.kind === "flush") return report === undefined ? "flush" : `flush\nsay ${report}:${index + 1}`;
      const { kind, offset, length } = request;
      return `${kind} ${offset} ${length}${"from" in request ? ` ${request.from}` : ""}`;
    });
    return `${GUEST_IO} run /dev/mapper/${this.name} ${this.#disks.paths.data} <<END\n${lines.join("\n")}\nEND`;
  }

  /** Hydrates in the background until at least so many regions are there; all of them by default. */
  async hydrate(regions = this.#clone.expected.geometry.regionCount): Promise<void> {
    this.#clone.takeHydration();
    await this.#guest.run(`
dmsetup message ${this.name} 0 enable_hydration
while set -- $(dmsetup status --noflush ${this.name}); [ "\${7%/*}" -lt ${regions} ]; do sleep 0.02; done
dmsetup message ${this.name} 0 disable_hydration
while set -- $(dmsetup status --noflush ${this.name}); [ "$8" -ne 0 ]; do sleep 0.02; done`);
  }

  /** The line of `dmsetup status`, which commits. */
  async status(): Promise<string> {
    return (await this.#guest.run(`dmsetup status ${this.name}`)).trim();
  }

  /** All that was ever written, as the kernel reads it. */
  async read(): Promise<Piece[]> {
    const copies = this.#clone.expected.content
      .extents()
      .map(({ offset, length }) => `skip=${offset} seek=${offset} count=${length}`);
    await this.#guest.run(`while read -r range; do
  dd if=/dev/mapper/${this.name} of=${this.#disks.paths.out} bs=1M iflag=direct,skip_bytes,count_bytes \
    oflag=direct,seek_bytes status=none $range
done <<END
${copies.join("\n")}
END`);
    return await this.#clone.readFile("out.img");
  }

  /** Removes the device, which commits. */
  async close(): Promise<void> {
    await this.#guest.run(`dmsetup remove ${this.name}`);
  }

  /** Unplugs the files. */
  detach(): Promise<void> {
    return this.#disks.detach();
  }
}

/** How many requests of each session a job had durable when it said its last word. */
export function durableCounts(job: GuestJob): Map<string, number> {
  return new Map(job.lines.map((line) => line.split(":")).map(([name = "", count]) => [name, Number(count)]));
}

/** Regions that tell these ranges from others: on both sides of every end, and at the ends of array blocks. */
function pointsOf(ranges: KernelView["ranges"], regionCount: number): number[] {
  const regionsPerBlock = 509 * 64;
  const borders = Array.from(
    { length: Math.ceil(regionCount / regionsPerBlock) },
    (_, index) => index * regionsPerBlock,
  );
  const points = [...ranges.flat(), ...borders, regionCount].flatMap((region) => [region - 1, region]);
  return [...new Set(points)].filter((region) => region >= 0 && region < regionCount).sort((a, b) => a - b);
}
