// `serve --record-trace` and `--order` as users meet them: what is recorded of one start, in what order the next one copies,
// and what becomes of a trace whose server is killed, or whose disk is full.
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { holds, randomFile } from "../support/files.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { clone, cloneOk, eventually, expectFailure, oneJson } from "../support/run-clone.ts";
import { mountedTmpfs, noLoopDevices, scratchDirectory, withReason } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const KIB = 1024;
const REGION = 64 * KIB;
const SIZE = 32 * REGION;
/** Where the client of every test here reads, in this order: offset and length. */
const READS: [number, number][] = [
  [20 * REGION, 16 * KIB],
  [3 * REGION + 4 * KIB, 4 * KIB],
  [3 * REGION + 8 * KIB, 4 * KIB],
  [20 * REGION, 8 * KIB], // known
  [9 * REGION - 4 * KIB, 8 * KIB],
  [31 * REGION, REGION],
];
/** What of that is needed for the first time, neighbours as one. */
const TOUCHES: [number, number][] = [
  [20 * REGION, 16 * KIB],
  [3 * REGION + 4 * KIB, 8 * KIB],
  [9 * REGION - 4 * KIB, 8 * KIB],
  [31 * REGION, REGION],
];
const TOUCHED_REGIONS = [20, 3, 8, 9, 31];

/** A directory with disk.img, and clones of it that were made. */
async function images(...names: string[]) {
  const place = await scratchDirectory();
  const cwd = place.path;
  const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
  for (const name of names) await cloneOk(["create", "disk.img", name], { cwd });
  return { cwd, bytes, [Symbol.asyncDispose]: () => place[Symbol.asyncDispose]() };
}

async function readAll(socket: string, bytes: Buffer, reads = READS): Promise<void> {
  await using client = await NbdClient.go({ path: socket });
  for (const [offset, length] of reads) {
    const { error, data } = await client.read(offset, length);
    expect(error).toBe(0);
    expect(Buffer.compare(data, bytes.subarray(offset, offset + length))).toBe(0);
  }
}

/** The ranges of a trace, without reading it as the program does. */
async function rangesOf(path: string): Promise<[number, number][]> {
  const [header, size, , ...lines] = (await readFile(path, "utf8")).split("\n");
  expect([header, size, lines.pop()]).toEqual(["clone-trace 1", `size ${SIZE}`, ""]);
  return lines.map((line) => line.split(" ").map(Number) as [number, number]);
}

/** The regions of a clone that are hydrated, as its metadata tells. */
async function hydrated(cwd: string, metadata: string): Promise<number[]> {
  const dump = oneJson<{ hydrated: [number, number][] }>(await cloneOk(["dump", metadata, "--json"], { cwd }));
  return dump.hydrated.flatMap(([start, end]) => Array.from({ length: end - start }, (_, i) => start + i));
}

/** The order in which a hydration copies: it is told to stop after one region more each time. */
async function orderOfCopies(cwd: string, name: string, count: number, args: string[]): Promise<number[]> {
  const order: number[] = [];
  for (let i = 0; i < count; i++) {
    await cloneOk(["hydrate", name, ...args, "--limit", "64K", "--batch-size", "1", "--threshold", "1"], { cwd });
    order.push(...(await hydrated(cwd, `${name}.clone`)).filter((region) => !order.includes(region)));
  }
  return order;
}

describe("a trace", () => {
  test("has the first touches of a start in their order, and the next clone is copied in it", async () => {
    await using made = await images("first.img", "second.img");
    const { cwd, bytes } = made;
    {
      await using server = await startServe({ cwd, clone: "first.img", args: ["--record-trace", "boot.trace"] });
      await readAll(server.socket, bytes);
      await stopServe(server);
    }
    expect(await rangesOf(join(cwd, "boot.trace"))).toEqual(TOUCHES);
    const order = await orderOfCopies(cwd, "second.img", 7, ["--order", "boot.trace"]);
    expect(order).toEqual([...TOUCHED_REGIONS, 0, 1]);
    await cloneOk(["hydrate", "second.img", "--order", "boot.trace"], { cwd });
    expect(await holds(join(cwd, "second.img"), bytes)).toBe(true);
  });

  test("is the same of a start that had one as order, from a clone that is read-only, of other regions and hydrated already", async () => {
    await using made = await images("first.img");
    const { cwd, bytes } = made;
    await cloneOk(["create", "disk.img", "small.img", "--region-size", "4K"], { cwd });
    await cloneOk(["create", "disk.img", "done.img", "--region-size", "1M"], { cwd });
    await cloneOk(["hydrate", "done.img"], { cwd });
    const starts: [string, string[]][] = [
      ["first.img", []],
      ["small.img", ["--order", "first.img.trace", "--read-only"]],
      ["done.img", ["--order", "small.img.trace"]],
    ];
    for (const [name, args] of starts) {
      const all = [...args, "--record-trace", `${name}.trace`];
      await using server = await startServe({ cwd, clone: name, args: all });
      await readAll(server.socket, bytes);
      await stopServe(server);
      expect(await rangesOf(join(cwd, `${name}.trace`))).toEqual(TOUCHES);
    }
  });

  test("orders what a server copies, and a small one a clone of other regions", async () => {
    await using made = await images();
    const { cwd, bytes } = made;
    await cloneOk(["create", "disk.img", "copy.img", "--region-size", "4K"], { cwd });
    const last = SIZE / 4096 - 1;
    await writeFile(join(cwd, "my.trace"), `clone-trace 1\n${last * 8}s 1\n# the rest does not matter\n64K 4K\n`);
    const args = ["--order", "my.trace", "--rate", "4K", "--threshold", "1", "--batch-size", "1"];
    await using server = await startServe({ cwd, clone: "copy.img", args });
    await eventually("two regions are hydrated", async () => (await server.status()).hydratedRegions >= 2);
    await stopServe(server);
    expect((await hydrated(cwd, "copy.img.clone")).filter((region) => region > 8)).toEqual([16, last]);
    await cloneOk(["hydrate", "copy.img"], { cwd });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  });

  test("of copy is read before anything is made", async () => {
    await using made = await images();
    const { cwd, bytes } = made;
    await writeFile(join(cwd, "bad.trace"), "clone-trace 1\n0 4096\nhalf past two\n");
    const refused = await clone(["copy", "disk.img", "copy.img", "--order", "bad.trace"], { cwd });
    expectFailure(refused, 1, /^clone: Cannot use the trace "bad\.trace": line 3: "half past two" is not an offset/);
    expect([existsSync(join(cwd, "copy.img")), existsSync(join(cwd, "copy.img.clone"))]).toEqual([false, false]);
    await writeFile(join(cwd, "good.trace"), `clone-trace 1\nsize 1T\n1G 4096\n${20 * REGION} 1\n`);
    const run = await clone(["copy", "disk.img", "copy.img", "--order", "good.trace"], { cwd });
    expect(run.code, run.stderr).toBe(0);
    expect(run.stderr.match(/Warning: .*/g)).toEqual([
      'Warning: 1 of 2 ranges of the trace "good.trace" of 1.00 TiB lie outside the image of 2.00 MiB and are left out',
    ]);
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  });

  test("is refused where it is none, and where it would take the place of another", async () => {
    await using made = await images("copy.img");
    const { cwd, bytes } = made;
    for (const command of ["hydrate", "serve"]) {
      const where = command === "serve" ? ["--socket", "nbd.sock"] : [];
      const run = await clone([command, "copy.img", ...where, "--order", "disk.img"], { cwd });
      expectFailure(run, 1, /^clone: Cannot use the trace "disk\.img": it does not begin with/, /clone-trace\(5\)/);
      const none = await clone([command, "copy.img", ...where, "--order", "none"], { cwd });
      expectFailure(none, 1, /^clone: Cannot read the trace "none": ENOENT$/);
    }
    const over = ["serve", "copy.img", "--socket", "nbd.sock", "--record-trace"];
    expectFailure(
      await clone([...over, "disk.img"], { cwd }),
      1,
      /^clone: Cannot record a trace in "disk\.img": it is not empty/,
    );
    expectFailure(await clone([...over, "copy.img.clone"], { cwd }), 1, /: it is not empty$/);
    expectFailure(
      await clone([...over, "none/trace"], { cwd }),
      1,
      /^clone: Cannot record a trace in "none\/trace": ENOENT$/,
    );
    expect(await holds(join(cwd, "disk.img"), bytes)).toBe(true);
    // A server that does not come to serve leaves no file behind.
    await mkdir(join(cwd, "nbd.sock"));
    expectFailure(await clone([...over, "boot.trace"], { cwd }), 1, /nbd\.sock/);
    expect(existsSync(join(cwd, "boot.trace"))).toBe(false);
  });

  test("of a server that has one of its own is not changed by hydrate", async () => {
    await using made = await images("copy.img");
    const { cwd } = made;
    await writeFile(join(cwd, "my.trace"), "clone-trace 1\n0 4096\n");
    await using server = await startServe({ cwd, clone: "copy.img", args: ["--no-hydrate"] });
    const run = await clone(["hydrate", "copy.img", "--order", "my.trace"], { cwd });
    expectFailure(
      run,
      2,
      new RegExp(`Cannot use --order: "copy.img" is served by process ${server.pid}, and its server has`),
    );
    await stopServe(server);
  });

  test("of a server that was killed has what was touched a second before, and orders the next clone", async () => {
    await using made = await images("first.img", "second.img");
    const { cwd, bytes } = made;
    await using server = await startServe({ cwd, clone: "first.img", args: ["--record-trace", "boot.trace"] });
    await readAll(server.socket, bytes);
    const path = join(cwd, "boot.trace");
    await eventually("it is written", async () => (await readFile(path, "utf8")).includes(`${31 * REGION} `));
    await readAll(server.socket, bytes, [[0, 4096]]); // which may be lost
    await server.kill9();
    expect((await rangesOf(path)).slice(0, TOUCHES.length)).toEqual(TOUCHES);
    await cloneOk(["hydrate", "second.img", "--order", "boot.trace", "--limit", "320K"], { cwd });
    expect(await hydrated(cwd, "second.img.clone")).toEqual(TOUCHED_REGIONS.toSorted((a, b) => a - b));
  });

  const noTmpfs = noLoopDevices;
  test.skipIf(noTmpfs !== undefined)(
    withReason("on a full disk ends with a warning, and no client notices", noTmpfs),
    async () => {
      await using made = await images("copy.img");
      const { cwd, bytes } = made;
      await using full = await mountedTmpfs(8 * KIB);
      const path = join(full.path, "boot.trace");
      await writeFile(join(full.path, "ballast"), Buffer.alloc(8 * KIB - 4 * KIB));
      await using server = await startServe({ cwd, clone: "copy.img", args: ["--record-trace", path] });
      const apart = Array.from({ length: 512 }, (_, i): [number, number] => [(i * 28 * KIB) % SIZE, 4 * KIB]);
      await readAll(server.socket, bytes, apart);
      await eventually("it is full", () => server.process.output().stderr.includes("ends here"));
      await readAll(server.socket, bytes);
      await server.hydrated();
      const run = await server.stop();
      expect(run.code, run.stderr).toBe(0);
      expect(run.stderr.match(/Warning: .*/g)).toEqual([
        expect.stringMatching(/^Warning: The trace ".*boot\.trace" ends here: ENOSPC\. What is in it can be used$/),
      ]);
      expect(await rangesOf(path)).toEqual(apart.slice(0, (await rangesOf(path)).length));
      await cloneOk(["hydrate", "copy.img", "--order", path], { cwd });
    },
  );
});
