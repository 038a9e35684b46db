/** What goes wrong at the edges of regions, of the clone, and of 32 bits. */
import { Geometry } from "../../../src/base/geometry.ts";
import type { BlockDevice, Extent } from "../../../src/device/block-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { CloneMetadata } from "../../../src/metadata/clone-metadata.ts";
import { recommendedBlockCount } from "../../../src/metadata/metadata-size.ts";
import { bytesAt, makeClone } from "../../support/clone-device.ts";
import { CountingSource } from "../../support/counting-source.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { LoggingDevice } from "../../support/logging-device.ts";
import { SparseImage } from "../../support/sim-image.ts";

const REGION = 4096;
const SECTOR = 512;

/** Discards of every offset and length over three regions and a short one: nothing but what was discarded may change. */
export async function discardsOfEverySize(): Promise<string[]> {
  const size = 3 * REGION + 3 * SECTOR;
  const before = noise(size, 1);
  const wrong: string[] = [];
  for (let offset = 0; offset < size; offset += SECTOR) {
    for (let length = SECTOR; offset + length <= size; length += SECTOR) {
      const source = new MemoryDevice({ name: "source", size, content: before });
      const clone = await makeClone({ size, regionSize: REGION, source, hydrated: [{ start: 1, end: 2 }] });
      await clone.destination.write(REGION, before.subarray(REGION, 2 * REGION));
      await clone.device.discard(offset, length);
      const after = await bytesAt(clone.device, 0, size);
      const expected = Buffer.from(before);
      after.copy(expected, offset, offset, offset + length); // contents of what was discarded are anybody's
      if (!after.equals(expected)) wrong.push(`a discard of ${length} bytes at ${offset} changes others`);
    }
  }
  return wrong.slice(0, 5);
}

/** A write of the end of the short last region leaves its beginning as it is. */
export async function endOfTheShortRegion(): Promise<string[]> {
  const size = 2 * REGION + 5 * SECTOR;
  const source = new MemoryDevice({ name: "source", size, content: noise(size, 1) });
  const clone = await makeClone({ size, regionSize: REGION, source });
  const expected = Buffer.from(await imageOf(source));
  expected.fill(0x77, size - SECTOR);
  await clone.device.write(size - SECTOR, expected.subarray(size - SECTOR));
  return (await bytesAt(clone.device, 0, size)).equals(expected) ? [] : ["a write of its last sector changes others"];
}

/** The short last region is copied, and what the destination has behind the clone stays as it is. */
export async function behindTheShortRegion(): Promise<string[]> {
  const size = 2 * REGION + 5 * SECTOR;
  const whole = new MemoryDevice({ name: "source", size: 4 * REGION, content: noise(4 * REGION, 1) });
  const disk = new MemoryDevice({ name: "destination", size: 4 * REGION, content: noise(4 * REGION, 2) });
  const behind = await bytesAt(disk, size, 4 * REGION - size);
  // The source is longer than the clone too, as where the table line says less than the devices have.
  const clone = await makeClone({ size, regionSize: REGION, source: whole, destination: disk });
  await clone.device.write(size - SECTOR, Buffer.alloc(SECTOR, 0x77));
  return (await bytesAt(disk, size, behind.length)).equals(behind)
    ? []
    : ["what lies behind the clone was overwritten"];
}

/** 14.2, 6: a write, and a discard, that cover the short last region whole do not read the source for it. */
export async function wholeShortRegion(): Promise<string[]> {
  const size = 2 * REGION + 5 * SECTOR;
  const wrong: string[] = [];
  for (const change of ["write", "discard"] as const) {
    const source = new CountingSource(new MemoryDevice({ name: "source", size, content: noise(size, 1) }));
    const clone = await makeClone({ size, regionSize: REGION, source });
    if (change === "write") await clone.device.write(2 * REGION, Buffer.alloc(5 * SECTOR, 0x77));
    else await clone.device.discard(2 * REGION, 5 * SECTOR);
    if (source.bytes > 0) wrong.push(`a ${change} of the whole last region reads the source`);
    if (clone.regions.state(2) !== "hydrated") wrong.push(`a ${change} of the whole last region does not hydrate it`);
  }
  return wrong;
}

/** 14.2, 7: a discard of a part of a hydrated region reaches the destination. */
export async function discardOfAPart(): Promise<string[]> {
  const log: string[] = [];
  const disk = new MemoryDevice({ name: "destination", size: 2 * REGION, content: noise(2 * REGION, 2) });
  const destination = new LoggingDevice(disk, "disk", log);
  const clone = await makeClone({ size: 2 * REGION, destination, hydrated: [{ start: 0, end: 2 }] });
  log.length = 0;
  await clone.device.discard(SECTOR, 2 * SECTOR);
  const reached = log.some((operation) => operation === `disk zero ${SECTOR}+${2 * SECTOR}`);
  return reached ? [] : [`the destination never learns of it: ${log.join(", ") || "nothing"}`];
}

/** 14.1: a discard beyond the end is refused as every request is. */
export async function discardBeyondTheEnd(): Promise<string[]> {
  const clone = await makeClone({ size: 4 * REGION });
  const wrong: string[] = [];
  for (const [offset, length] of [
    [3 * REGION, 2 * REGION],
    [5 * REGION, SECTOR],
    [4 * REGION, SECTOR],
    [2 ** 53, SECTOR],
  ] as const) {
    const error = await clone.device.discard(offset, length).catch((thrown: unknown) => thrown as Error);
    if (!(error instanceof RangeError)) wrong.push(`${length} bytes at ${offset}: ${error?.name ?? "accepted"}`);
  }
  return wrong;
}

/** A disk of any size, of which only what was written takes memory; what was not written is told by its offset. */
class LargeDisk implements BlockDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly = false;
  readonly blockSize = SECTOR;
  readonly #image: SparseImage;
  readonly #stamped: boolean;

  constructor(name: string, size: number, { stamped = false } = {}) {
    this.name = name;
    this.size = size;
    this.#image = new SparseImage(size);
    this.#stamped = stamped;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    if (!this.#stamped) return this.#image.read(offset, buffer);
    const view = new DataView(buffer.buffer, buffer.byteOffset, buffer.length);
    for (let at = 0; at < buffer.length; at += 8) view.setFloat64(at, offset + at + 1);
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#image.write(offset, data);
  }

  async flush(): Promise<void> {}

  async zero(offset: number, length: number): Promise<void> {
    this.#image.write(offset, new Uint8Array(length));
  }

  async discard(): Promise<void> {}

  async extents(offset: number, length: number): Promise<Extent[]> {
    return [{ offset, length, hole: false, zero: false }];
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}

/** 14.1: regions beyond 2^32 sectors are copied from and to where they are. */
export async function beyond32Bits(): Promise<string[]> {
  const regionSize = 65536;
  const size = 2 ** 41 + 10 * regionSize;
  const geometry = new Geometry({ size, regionSize });
  const blockCount = recommendedBlockCount(geometry.regionCount);
  const store = new LargeDisk("metadata", blockCount * 4096);
  await CloneMetadata.create(store, { geometry, blockCount });
  const source = new LargeDisk("source", size, { stamped: true });
  const destination = new LargeDisk("destination", size);
  const clone = await makeClone({ size, regionSize, source, destination, store });
  const wrong: string[] = [];
  for (const region of [0, geometry.regionCount - 10, geometry.regionCount - 7, geometry.regionCount - 1]) {
    await clone.device.write(region * regionSize, Buffer.alloc(SECTOR, 0x77));
    const expected = await bytesAt(source, region * regionSize, regionSize);
    expected.fill(0x77, 0, SECTOR);
    if (!(await bytesAt(clone.device, region * regionSize, regionSize)).equals(expected)) {
      wrong.push(`region ${region} was copied from or to another place`);
    }
  }
  await clone.device.flush();
  const reopened = await CloneMetadata.open(store, { readOnly: true });
  if (reopened.hydratedCount !== 4) wrong.push(`${reopened.hydratedCount} regions are hydrated, not 4`);
  return wrong;
}

/** 14.1: 2^31 regions are accepted, one more is not. */
export async function mostRegions(): Promise<string[]> {
  const wrong: string[] = [];
  for (const [regions, accepted] of [
    [2 ** 31, true],
    [2 ** 31 + 1, false],
    [2 ** 32, false],
  ] as const) {
    let was = true;
    try {
      new Geometry({ size: regions * REGION, regionSize: REGION });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      was = false;
    }
    if (was !== accepted) wrong.push(`${regions} regions are ${was ? "accepted" : "refused"}`);
  }
  return wrong;
}

/** 14.1: the count of 2^31 hydrated regions is that. */
export async function countOfAllRegions(): Promise<string[]> {
  const geometry = new Geometry({ size: 2 ** 31 * REGION, regionSize: REGION });
  const blockCount = recommendedBlockCount(geometry.regionCount);
  const store = new LargeDisk("metadata", blockCount * 4096);
  await CloneMetadata.create(store, { geometry, blockCount });
  await using metadata = await CloneMetadata.open(store);
  metadata.markHydrated({ start: 0, end: 2 ** 31 });
  return metadata.hydratedCount === 2 ** 31 ? [] : [`${metadata.hydratedCount} regions are counted`];
}

/** What clients do to the zeros of a source, on a destination that was created empty, and holds what an earlier life wrote. */
export async function zerosThatOnlySeemToBeThere(): Promise<string[]> {
  const size = 4 * REGION;
  const source = new MemoryDevice({ name: "source", size });
  // Created empty, yes; then somebody's writes reached the disk that no metadata tells of.
  const disk = new MemoryDevice({ name: "destination", size, content: noise(size, 2) });
  const clone = await makeClone({ size, source, destination: disk });
  for (let region = 0; region < 2; region++) {
    const hydration = clone.regions.begin({ start: region, end: region + 1 });
    await clone.copier.copy(clone.geometry.bytesOf(hydration), new AbortController().signal);
    clone.regions.complete(hydration);
  }
  await clone.device.zero(2 * REGION, REGION);
  await clone.device.discard(3 * REGION, REGION);
  const content = await bytesAt(clone.device, 0, size);
  return content.every((byte) => byte === 0) ? [] : ["what the destination held before shows where zeros belong"];
}
