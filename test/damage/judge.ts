/**
 * Shows a damaged image to everything that reads metadata, and judges what it makes of it by the truth.
 *
 *     nothing in use was struck      all of it works, and says the truth
 *     something in use was struck    the checker finds it; or what it means is the same
 *     sealed at its place            a block of the right type, number and shape: what the format cannot tell from a true one.
 *                                    The checker may find nothing, and then each wrong region must be reached through such
 *                                    a block; these images are counted, never passed over
 *
 * Whatever it is: nothing but operating errors is thrown, work is bounded by the size of the device, and no region is called
 * hydrated that is not.
 */
import { CloneError } from "../../src/base/errors.ts";
import { refuseOtherBits } from "../../src/clone/settled-bits.ts";
import { type CheckReport, checkMetadata, formatFinding } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DescriptorStore } from "../../src/metadata/descriptor.ts";
import { dumpMetadata } from "../../src/metadata/dump.ts";
import { readDump } from "../../src/metadata/restore-dump.ts";
import type { SeededRandom } from "../support/random.ts";
import { BLOCK, merged, type Range } from "./base-image.ts";
import type { DamagedDevice } from "./damaged-device.ts";
import { bound, type Evidence, firstMissing, rangesOf, same, Violation } from "./evidence.ts";

/** What an image is counted as. */
export const OUTCOMES = [
  "found",
  "harmless",
  "without a change of meaning",
  "an older state that the format cannot tell",
  "other bits that the format cannot tell",
] as const;
export type Outcome = (typeof OUTCOMES)[number];

/** Findings are bounded by kind (test/unit/metadata/check.test.ts); these are all kinds' together. */
const MOST_FINDINGS = 600;

/** One image under judgement. */
export class Judgement {
  readonly #evidence: Evidence;
  readonly #random: SeededRandom;
  /** Whether there is a descriptor that says how the clone was left. */
  #isDescribed = false;

  constructor(evidence: Evidence, random: SeededRandom) {
    this.#evidence = evidence;
    this.#random = random;
  }

  /** @throws {Violation} */
  async judge(): Promise<Outcome> {
    const report = await this.#check(this.#evidence.device());
    const opened = await this.#open(report);
    await this.#commit(report, opened);
    if (opened !== null) await this.#dump(opened);
    return this.#outcome(report, opened);
  }

  async #check(device: DamagedDevice): Promise<CheckReport> {
    const report = await checkMetadata(device);
    const findings = report.fatal.length + report.warnings.length;
    if (findings > MOST_FINDINGS) throw new Violation(`${findings} findings`);
    bound("check", device);
    return report;
  }

  /** What is hydrated as the program sees it, or null where it refuses the metadata. */
  async #open(report: CheckReport): Promise<Range[] | null> {
    const device = this.#evidence.device();
    try {
      await using metadata = await CloneMetadata.open(device, { readOnly: true });
      const ranges = rangesOf(metadata);
      bound("open", device);
      if (report.ok && report.facts?.hydratedRegions !== metadata.hydratedCount) {
        throw new Violation(`check counts ${report.facts?.hydratedRegions} hydrated, open ${metadata.hydratedCount}`);
      }
      const place = { geometry: metadata.geometry, blockCount: metadata.totalBlocks };
      const descriptor = (await DescriptorStore.open(device, place)).read();
      this.#isDescribed = descriptor?.destination.settled?.hydratedDigest !== undefined;
      const refused = await refuseOtherBits(device, metadata, descriptor).then(
        () => false,
        () => true,
      );
      if (refused ? report.ok : report.bitsRefuted) throw new Violation("check and clone differ about what was left");
      this.#explain(ranges);
      return ranges;
    } catch (error) {
      if (!(error instanceof CloneError)) throw error;
      bound("open", device);
      if (report.ok) throw new Violation(`check finds nothing fatal, open says: ${error.message}`);
      return null;
    }
  }

  /** Goes on with the clone on a copy: what is marked is there afterwards, with all that was there before. */
  async #commit(report: CheckReport, opened: Range[] | null): Promise<void> {
    const device = this.#evidence.device(false);
    try {
      await using metadata = await CloneMetadata.open(device);
      const start = metadata.nextUnhydrated(this.#random.integer(0, metadata.regionCount - 1));
      if (start === metadata.regionCount) return;
      const end = Math.min(metadata.regionCount, start + this.#random.integer(1, 3));
      const before = rangesOf(metadata);
      await unsettle(device, metadata);
      metadata.markHydrated({ start, end });
      metadata.preCommit();
      await metadata.commit();
      bound("commit", device);
      if (opened !== null && !same(before, opened)) throw new Violation("open for writing sees other bits");
      const after = await CloneMetadata.open(device, { readOnly: true });
      if (!same(rangesOf(after), merged([...before, [start, end]]))) throw new Violation("a commit lost or made bits");
      const again = await checkMetadata(device);
      if (report.ok && !again.ok)
        throw new Violation(`a commit did harm: ${again.fatal.map(formatFinding).join(" | ")}`);
    } catch (error) {
      if (!(error instanceof CloneError)) throw error;
      const isFull = error.code === "failed" && /No block is free/.test(error.message);
      if (report.ok && !isFull) throw new Violation(`check finds nothing fatal, a commit says: ${error.message}`);
    }
  }

  async #dump(opened: Range[]): Promise<void> {
    if (!this.#random.oneIn(4)) return;
    await using metadata = await CloneMetadata.open(this.#evidence.device(), { readOnly: true });
    const { geometry } = metadata;
    const pieces = dumpMetadata({ geometry, hydratedRanges: metadata.hydratedRanges(), descriptor: null }, "line");
    const { bits } = await readDump(encoded(pieces), "dump");
    const ranges = [...bits.ranges()].map(({ start, end }): Range => [start, end]);
    if (!same(ranges, opened)) throw new Violation("the dump has other bits");
  }

  #outcome(report: CheckReport, opened: Range[] | null): Outcome {
    const { truth } = this.#evidence.base;
    const fatal = report.fatal.filter(({ structure }) => structure !== "descriptor");
    const findings = [...fatal, ...report.warnings].filter(({ structure }) => structure !== "descriptor");
    if (this.#evidence.struck.size === 0) {
      // A file that ends before its last managed block is cut off, whatever was in the part that is gone.
      const isCut = this.#evidence.damage.size < this.#evidence.base.blockCount * BLOCK;
      if (isCut !== fatal.length > 0)
        throw new Violation(`free space is struck: ${findings.map(formatFinding).join(" | ")}`);
      if (!isCut && findings.length > 0)
        throw new Violation(`free space is struck: ${findings.map(formatFinding).join(" | ")}`);
      if (!isCut && (opened === null || !same(opened, truth)))
        throw new Violation("free space is struck, and the bits differ");
      return isCut || !report.ok ? "found" : "harmless";
    }
    if (report.fatal.length > 0) return "found";
    if (opened === null) throw new Violation("nothing fatal, but not opened");
    if (same(opened, truth)) {
      const unsealed = [...this.#evidence.struck].find(([block, role]) => !this.#evidence.isSealed(block, role));
      if (findings.length > 0) return "found";
      if (unsealed !== undefined) throw new Violation(`block ${unsealed[0]} is damaged, and not found`);
      return "without a change of meaning";
    }
    const missing = firstMissing(truth, opened);
    if (missing !== null) this.#explainRegion(missing);
    if (findings.length > 0) return "found";
    const isOlder = firstMissing(opened, truth) === null;
    // Our descriptor can tell, unless another superblock, or free blocks, say that somebody may have gone on with the clone.
    const goneOn = !isOlder && (this.#evidence.struck.has(0) || this.#evidence.isFreeStruck);
    if (this.#isDescribed && !goneOn) throw new Violation("the descriptor knows other bits");
    return isOlder ? "an older state that the format cannot tell" : "other bits that the format cannot tell";
  }

  /** @throws {Violation} where a region is called hydrated that is not, unless the format cannot tell why */
  #explain(ranges: readonly Range[]): void {
    const wrong = firstMissing(ranges, this.#evidence.base.truth);
    if (wrong !== null) this.#explainRegion(wrong);
  }

  #explainRegion(region: number): void {
    if (this.#evidence.isMisled(region)) return;
    throw new Violation(
      `open is wrong about region ${region}, which is read from ${this.#evidence.describePath(region)}`,
    );
  }
}

/** As the program does before it changes anything: how the clone was left means nothing from here on. */
async function unsettle(device: DamagedDevice, { geometry, totalBlocks }: CloneMetadata): Promise<void> {
  const store = await DescriptorStore.open(device, { geometry, blockCount: totalBlocks });
  const descriptor = store.read();
  if (descriptor === null) return;
  await store.write({ ...descriptor, destination: { ...descriptor.destination, settled: null } });
}

async function* encoded(pieces: Iterable<string>): AsyncGenerator<Uint8Array> {
  for (const piece of pieces) yield Buffer.from(piece);
}
