/** The mistakes of `mutations.campaign.ts`, and the text of each defence in the sources. */
import type { Mutation } from "../support/mutant.ts";

/** One mistake. */
export interface Mistake {
  /** A sentence without its end: "… does not happen". */
  mistake: string;
  /** File and name of the scene in `scenarios/`. */
  scene: readonly [string, string];
  /** What takes the defence out. */
  without: readonly Mutation[];
  /** What the scene must then find, among other things. */
  finds: RegExp;
}

const PIPELINE = "engine/commit-pipeline.ts";
const METADATA = "metadata/clone-metadata.ts";
const SPACE_MAP = "persistent-data/space-map.ts";
const REGION_MAP = "engine/region-map.ts";
const GEOMETRY = "base/geometry.ts";

/** The destination is flushed only after its metadata says what it holds. */
const FLUSHED_AFTERWARDS: readonly Mutation[] = [
  { file: PIPELINE, text: "const lost = await this.#flushDestination();", becomes: "const lost = undefined;" },
  {
    file: PIPELINE,
    text: "await metadata.commit();",
    becomes: "await metadata.commit(); await this.#flushDestination();",
  },
];

/** Everything that a crash may leave that it must not. */
const WRONG_BYTE = /byte \d+ is/;
const DAMAGED = /the metadata is (damaged|warnings)/;

export const MISTAKES: readonly Mistake[] = [
  {
    mistake: "Committing before the flush, so that data nobody touched is lost,",
    scene: ["commit-order", "dataThatNobodyTouched"],
    without: FLUSHED_AFTERWARDS,
    finds: WRONG_BYTE,
  },
  {
    mistake: "Committing before the flush, so that a sector is neither old nor new,",
    scene: ["commit-order", "oneSector"],
    without: FLUSHED_AFTERWARDS,
    finds: WRONG_BYTE,
  },
  {
    mistake: "Committing before the flush, so that unflushed sectors become garbage,",
    scene: ["commit-order", "unflushedSectors"],
    without: FLUSHED_AFTERWARDS,
    finds: WRONG_BYTE,
  },
  {
    mistake: "Committing before the flush, so that even a client's flush does not help,",
    scene: ["commit-order", "flushedSectors"],
    without: FLUSHED_AFTERWARDS,
    finds: WRONG_BYTE,
  },
  {
    mistake: "Going on where the destination could not flush",
    scene: ["failures", "flushThatFails"],
    without: [
      {
        file: PIPELINE,
        text: "const lost = await this.#flushDestination();",
        becomes: "const lost = await this.#flushDestination().catch(() => undefined);",
      },
    ],
    finds: /though the destination could not flush/,
  },
  {
    mistake: "Counting copies that the destination lost while they were made",
    scene: ["failures", "lostDuringACopy"],
    without: [{ file: PIPELINE, text: "    this.#parts.regions?.taint();\n", becomes: "" }],
    finds: /though the destination lost a part/,
  },
  {
    mistake: "Writing the descriptor over the only one there is",
    scene: ["metadata-order", "everyDescriptor"],
    without: [
      {
        file: "metadata/descriptor.ts",
        text: "const slot = current === null ? 0 : (current.slot + 1) % SLOT_COUNT;",
        becomes: "const slot = 0;",
      },
    ],
    finds: /of turn undefined/,
  },
  {
    mistake: "Creating metadata while the superblock before it may still be there",
    scene: ["metadata-order", "newMetadata"],
    without: [
      {
        file: "metadata/format-image.ts",
        text: "await device.write(0, first.fill(0));\n  await device.flush();",
        becomes: "await device.write(0, first.fill(0));",
      },
    ],
    finds: DAMAGED,
  },
  {
    mistake: "Committing the bits of the next transaction",
    scene: ["commit-order", "inAnotherWord"],
    without: [
      { file: METADATA, text: "this.#frozen = this.#dirty.freeze();", becomes: "" },
      {
        file: METADATA,
        text: 'this.#state = "committing";',
        becomes: 'this.#state = "committing"; this.#frozen = this.#dirty.freeze();',
      },
    ],
    finds: WRONG_BYTE,
  },
  {
    mistake: "Committing whole words of the region map",
    scene: ["commit-order", "inTheSameWord"],
    without: [
      {
        file: METADATA,
        text: "geometry.regionCount, this.#frozen);",
        becomes: `geometry.regionCount, [...this.hydratedRanges()].filter((range) =>
          this.#frozen.some(({ start, end }) =>
            range.start < Math.ceil(end / 64) * 64 && range.end > Math.floor(start / 64) * 64)));`,
      },
    ],
    finds: WRONG_BYTE,
  },
  {
    mistake: "Writing the superblock before the tree that it points to is durable",
    scene: ["metadata-order", "everyCommit"],
    without: [
      {
        file: "persistent-data/block-manager.ts",
        text: "await this.#writeOut();\n    await this.device.flush();",
        becomes: "await this.#writeOut();",
      },
    ],
    finds: DAMAGED,
  },
  {
    mistake: "Using blocks again that were freed in the same transaction",
    scene: ["metadata-order", "everyCommit"],
    without: [
      { file: SPACE_MAP, text: "|| allInUse(committed[at] as number)", becomes: "" },
      { file: SPACE_MAP, text: "|| entryAt(committed, entry) > 0", becomes: "" },
    ],
    finds: DAMAGED,
  },
  {
    mistake: "Searching for a free block to the end only",
    scene: ["failures", "searchForFreeBlocks"],
    without: [{ file: SPACE_MAP, text: " ?? this.#findFreeFrom(0)", becomes: "" }],
    finds: /free blocks of \d+ only \d+ are found/,
  },
  {
    mistake: "Looking at entries that a node has no room for",
    scene: ["failures", "tooManyEntries"],
    without: [
      {
        file: "persistent-data/btree-node.ts",
        text: "if (this.entryCount > room) refuse",
        becomes: "if (false) refuse",
      },
    ],
    finds: /300 entries in a node/,
  },
  {
    mistake: "Changing regions that a discard does not cover",
    scene: ["shapes", "discardsOfEverySize"],
    without: [
      {
        file: GEOMETRY,
        text: "return end > start ? { start, end } : { start, end: start };",
        becomes: "return end > start ? { start, end } : { start: end, end: start };",
      },
    ],
    finds: /changes others/,
  },
  {
    mistake: "Marking regions by a discard while they are being copied",
    scene: ["races", "discardDuringACopy"],
    without: [
      { file: REGION_MAP, text: "if (!entry.cancellable) return false;", becomes: "" },
      {
        file: REGION_MAP,
        text: "const marks = !this.#metadata.failed",
        becomes:
          "if (this.#entryAt(hydration.start) !== hydration) return false;\n    const marks = !this.#metadata.failed",
      },
    ],
    finds: /is gone/,
  },
  {
    mistake: "Skipping zeros where only a hole was, once",
    scene: ["shapes", "zerosThatOnlySeemToBeThere"],
    without: [
      { file: "engine/show-zeros.ts", text: "if (extent.zero) shown", becomes: "if (extent.length > 0) shown" },
    ],
    finds: /where zeros belong/,
  },
  {
    mistake: "Writing what was read behind a write that came meanwhile",
    scene: ["races", "lateWriteBehind"],
    without: [
      {
        file: "engine/write-behind.ts",
        text: "stats.writeBehindCancelled++;",
        becomes:
          "stats.writeBehindCancelled++; if (bytes !== undefined) await this.#write(offset, Buffer.from(bytes));",
      },
    ],
    finds: /is gone/,
  },
  {
    mistake: "Taking the short last region for covered by a write of its end",
    scene: ["shapes", "endOfTheShortRegion"],
    without: [
      {
        file: GEOMETRY,
        text: "const start = Math.ceil(offset / this.regionSize);",
        becomes: "const start = Math.floor(offset / this.regionSize);",
      },
    ],
    finds: /changes others/,
  },
  {
    mistake: "Copying the short last region at a whole region's length",
    scene: ["shapes", "behindTheShortRegion"],
    without: [
      {
        file: GEOMETRY,
        text: "Math.min(this.offsetOf(end), this.size) - offset",
        becomes: "this.offsetOf(end) - offset",
      },
    ],
    finds: /behind the clone was overwritten/,
  },
  {
    mistake: "Never taking the short last region for covered",
    scene: ["shapes", "wholeShortRegion"],
    without: [{ file: GEOMETRY, text: "offset + length >= this.size ? this.regionCount : ", becomes: "" }],
    finds: /reads the source/,
  },
  {
    mistake: "Dropping a discard of a part of a hydrated region",
    scene: ["shapes", "discardOfAPart"],
    without: [
      {
        file: "engine/clone-device.ts",
        text: "isFast || mayPunch ? { offset, length } : wholeRegions",
        becomes: "false ? { offset, length } : wholeRegions",
      },
    ],
    finds: /never learns of it/,
  },
  {
    mistake: "Taking a discard beyond the end",
    scene: ["shapes", "discardBeyondTheEnd"],
    without: [
      {
        file: "engine/clone-device.ts",
        text: "#checkChange(offset: number, length: number): void {\n    checkRange(this, offset, length);",
        becomes: "#checkChange(_offset: number, _length: number): void {",
      },
    ],
    finds: /AssertionError|accepted/,
  },
  {
    mistake: "Counting sectors in 32 bits",
    scene: ["shapes", "beyond32Bits"],
    without: [
      {
        file: GEOMETRY,
        text: "const offset = this.offsetOf(start);\n    return { offset, length: Math.min(this.offsetOf(end), this.size) - offset };",
        becomes: `const length = Math.min(this.offsetOf(end), this.size) - this.offsetOf(start);
    return { offset: ((this.offsetOf(start) / 512) >>> 0) * 512, length };`,
      },
    ],
    finds: /another place|outside|Error/,
  },
  {
    mistake: "Counting regions in 32 bits before there are too many",
    scene: ["shapes", "mostRegions"],
    without: [
      {
        file: GEOMETRY,
        text: "if (regionCount > MAX_REGION_COUNT)",
        becomes: "if (regionCount >>> 0 > MAX_REGION_COUNT)",
      },
    ],
    finds: /are accepted/,
  },
  {
    mistake: "Counting hydrated regions in 32 bits",
    scene: ["shapes", "countOfAllRegions"],
    without: [
      {
        file: METADATA,
        text: "this.#hydratedCount += range.end - range.start;",
        becomes: "this.#hydratedCount = (this.#hydratedCount + range.end - range.start) | 0;",
      },
    ],
    finds: /regions are counted/,
  },
  {
    mistake: "Running a timer after the end",
    scene: ["failures", "nothingAfterTheEnd"],
    without: [
      { file: "engine/periodic-commits.ts", text: "    this.#stop.abort();\n    await this.#running;", becomes: "" },
    ],
    finds: /after its end/,
  },
  {
    mistake: "Running out of metadata space in a commit",
    scene: ["failures", "leastSpace"],
    without: [
      {
        file: "metadata/metadata-size.ts",
        text: "const blocks = 2 * (fixed + bitmaps) + 4;",
        becomes: "const blocks = 2 * (fixed + bitmaps) + 3;",
      },
    ],
    finds: /No block is free/,
  },
  {
    mistake: "Calling a clone complete that is so in memory only",
    scene: ["failures", "completeOnDiskOnly"],
    without: [
      {
        file: PIPELINE,
        text: "metadata.committedCount === metadata.regionCount",
        becomes: "metadata.hydratedCount === metadata.regionCount",
      },
    ],
    finds: /is called complete/,
  },
  {
    mistake: "Hydration that starves beside steady clients",
    scene: ["failures", "steadyClients"],
    without: [
      {
        file: "engine/governor.ts",
        text: "return Math.min(this.#minRate, this.#rate ?? Infinity);",
        becomes: "return 1;",
      },
      {
        file: "engine/governor.ts",
        text: "return Math.min(Math.max(this.#minRate, this.#unnoticed), this.#rate ?? Infinity);",
        becomes: "return 1;",
      },
    ],
    finds: /starves/,
  },
  {
    mistake: "Trying a bad region again and again",
    scene: ["failures", "oneBadRegion"],
    without: [
      {
        file: "engine/online-hydrator.ts",
        text: "const retryKnown = this.#retryUnreadable;",
        becomes: "const retryKnown = true;",
      },
      {
        file: "engine/online-hydrator.ts",
        text: "if (this.#retryUnreadable && this.#given.count > 0) return true;",
        becomes: "if (this.#given.count > 0) return true;",
      },
    ],
    finds: /was tried \d+ times/,
  },
  {
    mistake: "Forgetting writes that were answered when a commit fails",
    scene: ["failures", "readsAfterAFailedCommit"],
    without: [
      {
        file: PIPELINE,
        text: "    this.#failure = error;\n",
        becomes: "    this.#failure = error;\n    this.#metadata?.rollback();\n",
      },
    ],
    finds: /disappears/,
  },
  {
    mistake: "Reading from the source again what was read before",
    scene: ["failures", "readTwice"],
    without: [
      {
        file: "engine/region-reader.ts",
        text: "const hydration = behind.begin({ start: region, end: runEnd });",
        becomes: "const hydration = undefined as ReturnType<typeof behind.begin>;",
      },
    ],
    finds: /asked 3 times/,
  },
  {
    mistake: "Forgetting what was tuned when a process ends",
    scene: ["failures", "rateThatWasTuned"],
    without: [{ file: "clone/tuned.ts", text: "await clone.updateDescriptor(", becomes: "void (" }],
    finds: /the next process/,
  },
];
