/** The metadata devices that Linux 6.1 wrote, unpacked, and what is known of them from elsewhere. */
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";

const FOLDER = new URL("../fixtures/kernel/", import.meta.url);

/** The truth, found without reading the metadata. `hydrated` are inclusive ranges; sizes are sectors. */
export interface KernelFixtureTruth {
  target_size: number;
  region_size: number;
  nr_regions: number;
  nr_hydrated: number;
  hydrated: [number, number][];
  metadata_sectors: number;
  metadata_sha256: string;
  used_metadata_blocks: number;
  /** The line of `dmsetup status` at the end; null where the machine was killed. */
  status: string | null;
  /** The same after opening the clone once more. */
  status_reopened: string;
}

/** Names of all fixtures. */
export const kernelFixtures: readonly string[] = readdirSync(FOLDER)
  .filter((file) => file.endsWith(".json"))
  .map((file) => file.slice(0, -".json".length))
  .sort();

/** The whole metadata device. */
export function readFixtureImage(name: string): Buffer {
  const packed = readdirSync(FOLDER).find((file) => file.startsWith(`${name}.meta.`));
  if (packed === undefined) throw new Error(`there is no image of fixture ${name}`);
  const path = new URL(packed, FOLDER).pathname;
  if (packed.endsWith(".gz")) return gunzipSync(readFileSync(path));
  return execFileSync("xz", ["-dc", path], { maxBuffer: 2 ** 30 });
}

export function readFixtureTruth(name: string): KernelFixtureTruth {
  return JSON.parse(readFileSync(new URL(`${name}.json`, FOLDER), "utf8"));
}
