import { execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { Geometry } from "../../../src/base/geometry.ts";
import { encodeTraceHeader, encodeTraceRange, MOST_RANGES, Trace } from "../../../src/clone/trace-codec.ts";
import { orderOf, readTrace } from "../../../src/clone/trace-file.ts";
import { type Scratch, scratchDirectory } from "../../support/scratch.ts";

const KIB = 1024;
const HEADER = "clone-trace 1\n";

async function traceOf(place: Scratch, text: string | Buffer): Promise<Trace> {
  const path = join(place.path, "trace");
  await writeFile(path, text);
  return await readTrace(path);
}

async function rangesOf(text: string | Buffer): Promise<[number, number][]> {
  await using place = await scratchDirectory();
  return [...(await traceOf(place, text)).ranges()].map(({ offset, length }) => [offset, length]);
}

/** The message that a text is refused with, less the path. */
async function refusal(text: string | Buffer): Promise<string> {
  await using place = await scratchDirectory();
  const error = await traceOf(place, text).catch((error: unknown) => error);
  expect(error).toBeInstanceOf(CloneError);
  const { message } = error as CloneError;
  expect(message).toMatch(/^Cannot \S.*: \S/);
  expect(message).not.toMatch(/[\n\r\0]/);
  return message.replace(place.path, "");
}

describe("readTrace()", () => {
  test("reads what was encoded, whatever the ranges", async () => {
    await using place = await scratchDirectory();
    const range = fc.record({ offset: fc.nat(2 ** 31), length: fc.integer({ min: 1, max: 2 ** 40 }) });
    await fc.assert(
      fc.asyncProperty(fc.array(range), fc.maxSafeNat(), async (ranges, size) => {
        const trace = await traceOf(place, encodeTraceHeader(size) + ranges.map(encodeTraceRange).join(""));
        expect(trace.size).toBe(size);
        expect([...trace.ranges()]).toEqual(ranges);
        expect(trace.length).toBe(ranges.length);
      }),
      { numRuns: 50 },
    );
  });

  test("is lenient about blanks, line ends, comments and units", async () => {
    const text =
      "\n # made by hand\n  clone-trace\t1 # yes\r\nsize 1G\r\n\r\n 0  4096\r\n\t8K\t 64KiB # the boot block\n#\n2048s 1s\n7 9";
    expect(await rangesOf(text)).toEqual([
      [0, 4096],
      [8 * KIB, 64 * KIB],
      [2048 * 512, 512],
      [7, 9],
    ]);
    expect(await rangesOf(HEADER)).toEqual([]);
  });

  test.for([
    ["nothing", "", /: it does not begin with "clone-trace 1"$/],
    ["only a comment", "# only a comment\n", /: it does not begin with "clone-trace 1"$/],
    ["no header", "0 4096\n", /: it does not begin with/],
    ["a header without version", "clone-trace\n", /: it does not begin with/],
    ["a header with more", "clone-trace 1 2\n", /: it does not begin with/],
    ["another version", "clone-trace 2\n0 1\n", /: line 1: version "2" of the format is not known$/],
    ["one number", `${HEADER}4096\n`, /: line 2: "4096" is not an offset and a length$/],
    ["three numbers", `${HEADER}\n1 2 3\n`, /: line 3: "1 2 3" is not an offset and a length$/],
    ["a word", `${HEADER}0 4096\nabc 1\n`, /: line 3: "abc" is no size/],
    ["a negative number", `${HEADER}-1 1\n`, /: line 2: "-1" is no size/],
    ["a hexadecimal number", `${HEADER}0x10 1\n`, /: line 2: "0x10" is no size/],
    ["a fraction", `${HEADER}1.5 1\n`, /: line 2: "1.5" is no size/],
    ["too large a number", `${HEADER}0 99999P\n`, /: line 2: "99999P" is no size, or one that is too large$/],
    ["too large a sum", `${HEADER}7P 7P\n`, /: line 2: "7P 7P" is too large$/],
    ["a range of nothing", `${HEADER}4096 0\n`, /: line 2: a range of no bytes$/],
    ["two sizes", `${HEADER}size 1\nsize 1\n`, /: line 3: a size comes once, before the ranges$/],
    ["a late size", `${HEADER}0 1\nsize 1\n`, /: line 3: a size comes once, before the ranges$/],
    ["many digits", `${HEADER}0 ${"1".repeat(100)}\n`, /: line 2: "1{40}…" is no size/],
    ["a long line", `${HEADER}0 1\n${"x".repeat(5000)}\n`, /: line 3: it is too long$/],
    ["a line without end", `${HEADER}0 1\n${"x".repeat(200_000)}`, /: line 3: it is too long$/],
    ["zeros", `${HEADER}0 1\n0 1\0\0\0\n`, /: line 3: "1\\u0000\\u0000\\u0000" is no size/],
    ["a disk of zeros", Buffer.alloc(100_000), /: it does not begin with/],
    ["a disk of data", Buffer.alloc(100_000, 0xe9), /: it does not begin with/],
  ] as const)("refuses %s, saying where and why", async ([, text, message]) => {
    expect(await refusal(text)).toMatch(message);
  });

  test("takes a last line that does not end if it can be understood, and leaves it out if not", async () => {
    expect(await rangesOf(`${HEADER}0 4096\n8192 40`)).toEqual([
      [0, 4096],
      [8192, 40],
    ]);
    for (const rest of ["8192", "8192 ", "8192 4x", "si"])
      expect(await rangesOf(`${HEADER}0 4096\n${rest}`)).toEqual([[0, 4096]]);
    expect(await refusal("clone-tra")).toMatch(/does not begin with/);
  });

  test("keeps the first 2^20 ranges of a longer trace, and says so once", async () => {
    await using place = await scratchDirectory();
    const lines = Array.from({ length: MOST_RANGES + 3 }, (_, i) => `${8 * i}K 4K\n`);
    const trace = await traceOf(place, HEADER + lines.join(""));
    expect([trace.length, trace.cutOff]).toEqual([MOST_RANGES, true]);
    expect(trace.size).toBeUndefined();
    const warnings: string[] = [];
    const geometry = new Geometry({ size: 2 ** 40, regionSize: 4096 });
    expect(orderOf(trace, geometry, (warning) => warnings.push(warning)).length).toBe(MOST_RANGES);
    expect(warnings).toEqual([expect.stringMatching(/only the first 1048576 ranges count$/)]);
    const all = await traceOf(place, HEADER + lines.slice(0, MOST_RANGES).join(""));
    expect([all.length, all.cutOff]).toEqual([MOST_RANGES, false]);
  });

  test("reads a pipe", async () => {
    const trace = execFileSync("sh", ["-c", "printf 'clone-trace 1\\n1 2\\n' | cat"]);
    expect(await rangesOf(trace)).toEqual([[1, 2]]);
    await using place = await scratchDirectory();
    const pipe = join(place.path, "pipe");
    execFileSync("mkfifo", [pipe]);
    const [read] = await Promise.all([readTrace(pipe), writeFile(pipe, `${HEADER}3 4\n`)]);
    expect([...read.ranges()]).toEqual([{ offset: 3, length: 4 }]);
  });

  test("says what it cannot read", async () => {
    await using place = await scratchDirectory();
    await expect(readTrace(join(place.path, "none"))).rejects.toThrow(/^Cannot read the trace ".*none": ENOENT$/);
    await expect(readTrace(place.path)).rejects.toThrow(/^Cannot read the trace ".*": EISDIR$/);
    await expect(readTrace("/dev/zero")).rejects.toThrow('Cannot use the trace "/dev/zero": it does not begin with');
    await expect(readTrace("a\0b")).rejects.toThrow();
  });

  test("stops when it is told to", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "trace");
    await writeFile(path, HEADER);
    const reason = new Error("interrupted");
    await expect(readTrace(path, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });
});

describe("orderOf()", () => {
  const never = (warning: string): never => expect.fail(warning);
  const traceWith = (ranges: [number, number][], size?: number): Trace => {
    const trace = new Trace("boot.trace");
    trace.size = size;
    for (const [offset, length] of ranges) trace.push({ offset, length });
    return trace;
  };
  const pairs = (trace: Trace, geometry: Geometry, onWarning: (warning: string) => void = never) =>
    [...orderOf(trace, geometry, onWarning).ranges()].map(({ start, end }) => [start, end]);

  test("names the regions that the ranges touch, whatever their size", () => {
    const trace = traceWith([
      [128 * KIB, 16 * KIB],
      [132 * KIB, 4 * KIB],
      [4 * KIB, 4 * KIB],
      [60 * KIB, 8 * KIB],
    ]);
    const size = 192 * KIB + 512;
    expect(pairs(trace, new Geometry({ size, regionSize: 4096 }))).toEqual([
      [32, 36],
      [1, 2],
      [15, 17],
    ]);
    expect(pairs(trace, new Geometry({ size, regionSize: 65536 }))).toEqual([
      [2, 3],
      [0, 2],
    ]);
    expect(pairs(trace, new Geometry({ size, regionSize: 2 ** 30 }))).toEqual([[0, 1]]);
  });

  test("clips what reaches beyond the image, and leaves out what begins there, with one warning", () => {
    const geometry = new Geometry({ size: 64 * KIB, regionSize: 4096 });
    const trace = traceWith(
      [
        [60 * KIB, 2 ** 40],
        [64 * KIB, 1],
        [0, 1],
        [2 ** 52, 4096],
      ],
      2 ** 41,
    );
    const warnings: string[] = [];
    expect(pairs(trace, geometry, (warning) => void warnings.push(warning))).toEqual([
      [15, 16],
      [0, 1],
    ]);
    expect(warnings).toEqual([
      '2 of 4 ranges of the trace "boot.trace" of 2.00 TiB lie outside the image of 64.0 KiB and are left out',
    ]);
    expect(pairs(traceWith([[0, 1]], 2 ** 41), geometry)).toEqual([[0, 1]]); // of another size, but no worse for that
  });
});
