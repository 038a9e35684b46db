// qemu's tools as clients of a clone that is hydrating: what they are told and what they read is the source as they have
// changed it, and once all is hydrated the destination alone holds the same.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { holds, randomFile, sparseFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { seededRandom, testSeed } from "../support/random.ts";
import { cloneOk } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 16 * MIB;
/** Slow enough that the clients meet a clone that is far from hydrated. */
const SLOWLY = ["--rate", "2M"];

/** A source with data and holes, in and across regions; cloned to copy.img. */
async function sparseClone(cwd: string): Promise<Buffer> {
  const bytes = await sparseFile(join(cwd, "disk.img"), SIZE, [
    [0, 3 * MIB],
    [5 * MIB - 4 * KIB, 8 * KIB],
    [8 * MIB, 64 * KIB],
    [9 * MIB + 32 * KIB, 2 * MIB],
    [SIZE - 4 * KIB, 4 * KIB],
  ]);
  await cloneOk(["create", "disk.img", "copy.img"], { cwd });
  return bytes;
}

describe("qemu-img", () => {
  testWith({ programs: ["qemu-img"] }, "info, map, compare and convert see the source while it hydrates", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await sparseClone(cwd);
    await using server = await startServe({ clone: "copy.img", cwd, args: SLOWLY });

    const info = JSON.parse(await run("qemu-img", "info", "--output=json", "-f", "raw", server.uri));
    expect(info).toMatchObject({ "virtual-size": SIZE, format: "raw" });

    const map = await mapOf(server.uri);
    expect(map.reduce((end, { start, length }) => (start === end ? end + length : Number.NaN), 0)).toBe(SIZE);
    for (const { start, length, zero } of map) {
      if (zero) expect(bytes.subarray(start, start + length).every((byte) => byte === 0)).toBe(true);
    }
    // The holes are told, but for what shares a region with data.
    const zeros = map.reduce((sum, { length, zero }) => sum + (zero ? length : 0), 0);
    expect(zeros).toBeGreaterThan(SIZE / 2);

    const compared = await run("qemu-img", "compare", "-f", "raw", "-F", "raw", join(cwd, "disk.img"), server.uri);
    expect(compared).toContain("Images are identical");
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, join(cwd, "out.qcow2"));
    await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", join(cwd, "out.qcow2"), join(cwd, "out.img"));
    expect(await holds(join(cwd, "out.img"), bytes)).toBe(true);
    await stopServe(server);
    expect(await holds(join(cwd, "disk.img"), bytes)).toBe(true);
  });

  testWith({ programs: ["qemu-img"] }, "convert over a clone leaves nothing to hydrate", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const source = await sparseClone(cwd);
    const other = await sparseFile(join(cwd, "other.img"), SIZE, [
      [2 * MIB + 4 * KIB, MIB],
      [7 * MIB, 3 * MIB],
    ]);
    {
      await using server = await startServe({ clone: "copy.img", cwd, args: ["--no-hydrate"] });
      await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", join(cwd, "other.img"), server.uri);
      const compared = await run("qemu-img", "compare", "-f", "raw", "-F", "raw", join(cwd, "other.img"), server.uri);
      expect(compared).toContain("Images are identical");
      // Every region was written or zeroed.
      await server.hydrated();
      await stopServe(server);
    }
    await cloneOk(["finalize", "copy.img"], { cwd });
    expect(await holds(join(cwd, "copy.img"), other)).toBe(true);
    expect(await holds(join(cwd, "disk.img"), source)).toBe(true);
  });
});

interface MapEntry {
  start: number;
  length: number;
  zero: boolean;
  data: boolean;
}

async function mapOf(uri: string): Promise<MapEntry[]> {
  return JSON.parse(await run("qemu-img", "map", "--output=json", "-f", "raw", uri));
}

describe("qemu-io", () => {
  testWith(
    { programs: ["qemu-io", "qemu-img"] },
    "reads back what it writes, zeroes and discards while the clone hydrates",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const seed = testSeed();
      const script = qemuIoScript(await randomFile(join(cwd, "disk.img"), SIZE), seed);
      await cloneOk(["create", "disk.img", "copy.img"], { cwd });
      {
        await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "8M"] });
        const said = await run(
          "qemu-io",
          "-f",
          "raw",
          "-t",
          "none",
          ...script.commands.flatMap((command) => ["-c", command]),
          server.uri,
        );
        expect(said, `seed ${seed}`).not.toMatch(/failed|error/i);
        await server.hydrated();
        await stopServe(server);
      }
      await cloneOk(["finalize", "copy.img"], { cwd });
      const copy = await readFile(join(cwd, "copy.img"));
      expect(script.differsAt(copy), `seed ${seed}`).toBe(-1);
    },
  );
});

/**
 * Commands for qemu-io in random order, with what they make of an image. What it reads, qemu-io itself compares. A
 * discarded byte may be old or zero.
 */
function qemuIoScript(bytes: Buffer, seed: number) {
  const random = seededRandom(seed);
  const discarded = new Uint8Array(bytes.length);
  const commands: string[] = [];
  const fill = (offset: number, length: number, byte: number) => {
    bytes.fill(byte, offset, offset + length);
    discarded.fill(0, offset, offset + length);
  };
  for (let step = 0; step < 300; step++) {
    const unit = random.pick([512, 4 * KIB, 64 * KIB]);
    const length = unit * random.integer(1, 4);
    const offset = unit * random.integer(0, Math.floor((bytes.length - length) / unit));
    const pattern = random.integer(1, 255);
    const range = `${offset} ${length}`;
    const kind = random.integer(0, 9);
    if (kind === 0) {
      commands.push(`write -z ${range}`, `read -P 0 ${range}`);
      fill(offset, length, 0);
    } else if (kind === 1) {
      commands.push(`write -zu ${range}`, `read -P 0 ${range}`);
      fill(offset, length, 0);
    } else if (kind === 2) {
      commands.push(`discard ${range}`);
      discarded.fill(1, offset, offset + length);
    } else if (kind === 3) {
      commands.push("flush");
    } else if (kind === 4) {
      commands.push(`aio_write -P ${pattern} ${range}`, "aio_flush", `aio_read -P ${pattern} ${range}`, "aio_flush");
      fill(offset, length, pattern);
    } else if (kind === 5) {
      commands.push(`writev -P ${pattern} ${offset} ${length / 2} ${length / 2}`, `readv -P ${pattern} ${range}`);
      fill(offset, length, pattern);
    } else {
      commands.push(`write ${kind === 6 ? "-f " : ""}-P ${pattern} ${range}`);
      if (kind > 7) commands.push(`read -P ${pattern} ${range}`);
      fill(offset, length, pattern);
    }
  }
  commands.push("flush");
  return {
    commands,
    /** The first byte at which `copy` is not what the commands made, or -1. */
    differsAt: (copy: Buffer) =>
      copy.length !== bytes.length
        ? Math.min(copy.length, bytes.length)
        : copy.findIndex((byte, at) => byte !== bytes[at] && !(discarded[at] === 1 && byte === 0)),
  };
}
