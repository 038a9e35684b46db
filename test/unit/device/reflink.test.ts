/** FileDevice.reflinkFrom() on the file systems that can share blocks, and on one that cannot. */
import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { BlockDevice } from "../../../src/device/block-device.ts";
import { FileDevice } from "../../../src/device/file-device.ts";
import { PaddedDevice } from "../../../src/device/filters/padded.ts";
import { ReadOnlyDevice } from "../../../src/device/filters/read-only.ts";
import { SliceDevice } from "../../../src/device/filters/slice.ts";
import { StatsDevice } from "../../../src/device/filters/stats.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { contentBytes } from "../../support/random.ts";
import { mountedFileSystem, noFileSystem, run, scratchDirectory, withReason } from "../../support/scratch.ts";

const RW = { access: "read-write" } as const;
const MB = 2 ** 20;

for (const type of ["xfs", "btrfs"]) {
  describe.skipIf(noFileSystem(type) !== undefined)(withReason(`reflinkFrom() on ${type}`, noFileSystem(type)), () => {
    test("shares blocks: the whole file, its broken last block included", async () => {
      await using scratch = await mountedFileSystem(type, 512 * MB);
      const content = contentBytes(8 * MB + 1234);
      await using pair = await openPair(scratch.path, content, content.length);
      expect(await pair.destination.reflinkFrom(pair.source, 0, 0, content.length)).toBe(true);
      await pair.destination.flush();
      expect(Buffer.compare(await readFile(pair.to), content)).toBe(0);
      expect(await sharedBytes(pair.to)).toBeGreaterThanOrEqual(8 * MB);
      await pair.destination.write(5, Buffer.from("mine"), { fua: true }); // and unshares where it writes
      expect(Buffer.compare(await readFile(pair.from), content)).toBe(0);
    });

    test("copies what surrounds the whole blocks of a range", async () => {
      await using scratch = await mountedFileSystem(type, 512 * MB);
      const content = contentBytes(4 * MB);
      await using pair = await openPair(scratch.path, content, 6 * MB);
      const length = 2 * MB + 777;
      expect(await pair.destination.reflinkFrom(pair.source, 100, 4096 * 3 + 100, length)).toBe(true);
      const expected = Buffer.alloc(6 * MB);
      content.copy(expected, 4096 * 3 + 100, 100, 100 + length);
      await pair.destination.flush();
      expect(Buffer.compare(await readFile(pair.to), expected)).toBe(0);
      expect(await sharedBytes(pair.to)).toBeGreaterThanOrEqual(MB);
    });

    test("refuses, and changes nothing, where blocks do not meet or there is no whole one", async () => {
      await using scratch = await mountedFileSystem(type, 512 * MB);
      await using pair = await openPair(scratch.path, contentBytes(MB), MB);
      expect(await pair.destination.reflinkFrom(pair.source, 0, 512, 65536)).toBe(false);
      expect(await pair.destination.reflinkFrom(pair.source, 100, 100, 4000)).toBe(false);
      expect(await pair.destination.reflinkFrom(new MemoryDevice({ size: MB }), 0, 0, MB)).toBe(false);
      expect(await pair.destination.reflinkFrom(new FaultyDevice(pair.source, {}), 0, 0, MB)).toBe(false);
      expect(Buffer.compare(await readFile(pair.to), Buffer.alloc(MB))).toBe(0);
      expect(await pair.destination.reflinkFrom(pair.source, 0, 0, MB)).toBe(true); // a refusal is of that range only
    });

    test("reaches through filters on either side", async () => {
      await using scratch = await mountedFileSystem(type, 512 * MB);
      const content = contentBytes(2 * MB + 100);
      await using pair = await openPair(scratch.path, content, content.length);
      const source = new ReadOnlyDevice(new StatsDevice(new PaddedDevice(pair.source)));
      const destination = new StatsDevice(new PaddedDevice(pair.destination));
      expect(source.size).toBe(2 * MB + 512);
      expect(await destination.reflinkFrom(source, 0, 0, source.size)).toBe(true);
      await destination.flush();
      expect(Buffer.compare(await readFile(pair.to), content)).toBe(0);
      expect(destination.stats.reflink).toEqual({ operations: 1, bytes: source.size });

      const from = new SliceDevice(pair.source, { start: 65536, size: MB });
      const to = new SliceDevice(pair.destination, { start: 4096, size: MB + 4096 });
      expect(await to.reflinkFrom(from, 4096, 8192, 65536)).toBe(true);
      await to.flush();
      content.copyWithin(4096 + 8192, 65536 + 4096, 65536 + 4096 + 65536);
      expect(Buffer.compare(await readFile(pair.to), content)).toBe(0);
    });

    test("between two file systems is refused", async () => {
      await using here = await mountedFileSystem(type, 512 * MB);
      await using there = await scratchDirectory();
      const path = join(there.path, "source");
      await writeFile(path, contentBytes(MB));
      await using source = await FileDevice.open(path, { access: "read-only" });
      await using destination = await FileDevice.open(join(here.path, "to"), { ...RW, create: { size: MB } });
      expect(await destination.reflinkFrom(source, 0, 0, MB)).toBe(false);
      expect(await destination.reflinkFrom(source, 0, 0, MB)).toBe(false);
    });
  });
}

const noExt4 = noFileSystem("ext4");
test.skipIf(noExt4 !== undefined)(
  withReason("reflinkFrom() on ext4 is refused and changes nothing", noExt4),
  async () => {
    await using scratch = await mountedFileSystem("ext4", 16 * MB);
    await using pair = await openPair(scratch.path, contentBytes(MB), MB);
    expect(await pair.destination.reflinkFrom(pair.source, 0, 0, MB)).toBe(false);
    expect(Buffer.compare(await readFile(pair.to), Buffer.alloc(MB))).toBe(0);
  },
);

test("reflinkFrom() refuses ranges outside of either device", async () => {
  await using scratch = await scratchDirectory();
  await using pair = await openPair(scratch.path, contentBytes(8192), 4096);
  const { source, destination } = pair;
  await expect(destination.reflinkFrom(source, 4096, 0, 8192)).rejects.toThrow(RangeError);
  await expect(destination.reflinkFrom(source, 0, 4096, 4096)).rejects.toThrow(RangeError);
});

interface Pair extends AsyncDisposable {
  from: string;
  to: string;
  source: FileDevice;
  destination: FileDevice & BlockDevice;
}

async function openPair(directory: string, content: Uint8Array, size: number): Promise<Pair> {
  const [from, to] = [join(directory, "from"), join(directory, "to")];
  await writeFile(from, content);
  const source = await FileDevice.open(from, { access: "read-only" });
  const destination = await FileDevice.open(to, { ...RW, create: { size } });
  return {
    from,
    to,
    source,
    destination,
    async [Symbol.asyncDispose]() {
      await source[Symbol.asyncDispose]();
      await destination[Symbol.asyncDispose]();
    },
  };
}

/** Bytes of a file that it shares with others, as FIEMAP tells. */
async function sharedBytes(path: string): Promise<number> {
  const { blksize } = await stat(path);
  const lines = (await run("filefrag", "-v", `-b${blksize}`, path))
    .split("\n")
    .filter((line) => line.includes("shared"));
  return lines.reduce((sum, line) => sum + Number(line.split(":")[3]?.trim()) * blksize, 0);
}
