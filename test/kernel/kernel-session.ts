/**
 * A clone in the hands of the kernel: its files are plugged into the guest, where dmsetup makes a device of them.
 *
 * What the kernel takes for hydrated is found without reading the metadata: over a source of zeros and a destination of
 * errors, a region is hydrated if and only if reading it fails.
 */
import { readFile, truncate, writeFile } from "node:fs/promises";
import { GUEST_IO, type GuestDisks, type GuestJob, type KernelGuest } from "./kernel-guest.ts";
import type { RelayedClone } from "./relayed-clone.ts";
import type { CloneRequest } from "./requests.ts";

/** What metadata says, by the kernel. */
export interface KernelView {
  ranges: [start: number, end: number][];
  /** The line of `dmsetup status`. */
  status: string;
}

type DiskName = "metadata" | "destination" | "source" | "data" | "out";

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
  table(options = "1 no_hydration 4 hydration_threshold 64 hydration_batch_size 16"): string {
    const { sectors, regionSectors } = this.#clone.shape;
    const { metadata, destination, source } = this.#disks.paths;
    return `0 ${sectors} clone ${metadata} ${destination} ${source} ${regionSectors} ${options}`;
  }

  /** Asks the kernel what the metadata says, and leaves it as it is. */
  async view(): Promise<KernelView> {
    const { sectors, regionSectors } = this.#clone.shape;
    const probe = `${this.name}-probe`;
    const told = await this.#guest.run(`
dmsetup create ${probe}-zeros --table "0 ${sectors} zero"
dmsetup create ${probe}-errors --table "0 ${sectors} error"
dmsetup create ${probe} --table "0 ${sectors} clone ${this.#disks.paths.metadata} \
/dev/mapper/${probe}-errors /dev/mapper/${probe}-zeros ${regionSectors} 1 no_hydration"
dmsetup status --noflush ${probe}
${GUEST_IO} probe /dev/mapper/${probe} ${regionSectors * 512}
dmsetup remove ${probe}
dmsetup remove ${probe}-errors ${probe}-zeros`);
    const [status = "", ...lines] = told.trimEnd().split("\n");
    const ranges = lines.map((line) => line.split(" ").map(Number) as [number, number]);
    return { ranges, status };
  }

  /** Makes the device; metadata whose first block is zeros is formatted. */
  async open(): Promise<void> {
    await this.#guest.run(`dmsetup create ${this.name} --table "${this.table()}"`);
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

  /** All bytes of the clone, as the kernel reads them. */
  async readAll(): Promise<Buffer> {
    await this.#guest.run(
      `dd if=/dev/mapper/${this.name} of=${this.#disks.paths.out} bs=1M iflag=direct oflag=direct status=none`,
    );
    return await readFile(this.#clone.path("out.img"));
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
