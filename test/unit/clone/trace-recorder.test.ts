import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, open, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { encodeTraceHeader, MOST_RANGES } from "../../../src/clone/trace-codec.ts";
import { readTrace } from "../../../src/clone/trace-file.ts";
import { TraceRecorder } from "../../../src/clone/trace-recorder.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { eventually } from "../../support/run-clone.ts";
import { mountedTmpfs, noLoopDevices, scratchDirectory, withReason } from "../../support/scratch.ts";

const SIZE = 2 ** 30;
const GRANULE = 4096;

/** A recorder of an image of `SIZE` bytes, with time in the test's hands. */
async function recorderTo(path: string, size = SIZE) {
  const clock = new ManualClock();
  const warnings: string[] = [];
  const onWarning = (warning: string): void => void warnings.push(warning);
  const recorder = await TraceRecorder.create(path, { size, clock, onWarning });
  /** Touches every other place, so that none is the neighbour of the last. */
  const touchApart = (from: number, count: number): void => {
    for (let i = from; i < from + count; i++) recorder.touch(2 * i * GRANULE, 1);
  };
  return { recorder, clock, warnings, touchApart };
}

/** A path at which every file takes for ever to be written to. */
async function hangingFile() {
  const place = await scratchDirectory();
  const probe = await open(join(place.path, "probe"), "w");
  let answer = (): void => {};
  const hang = new Promise<void>((resolve) => {
    answer = resolve;
  });
  const append = vi.spyOn(Object.getPrototypeOf(probe), "appendFile").mockReturnValue(hang);
  await probe.close();
  return {
    path: join(place.path, "trace"),
    calls: () => append.mock.calls.length,
    async [Symbol.asyncDispose]() {
      append.mockRestore();
      answer();
      await new Promise((resolve) => setTimeout(resolve, 20)); // the recorder closes it
      await place[Symbol.asyncDispose]();
    },
  };
}

async function closeAfter(ms: number, recorder: TraceRecorder, clock: ManualClock): Promise<void> {
  const closed = recorder.close();
  await clock.advance(ms);
  await closed;
}

async function rangesIn(path: string): Promise<[number, number][]> {
  return [...(await readTrace(path)).ranges()].map(({ offset, length }) => [offset, length]);
}

describe("TraceRecorder", () => {
  test("writes once a second what was touched, and the rest when it is closed", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "trace");
    const { recorder, clock, warnings } = await recorderTo(path);
    recorder.start();
    recorder.touch(GRANULE, 10);
    recorder.touch(0, 10);
    expect(await readFile(path, "utf8")).toBe("");
    await clock.advance(1000);
    await eventually("it is written", async () => (await readFile(path, "utf8")).endsWith("\n0 4096\n"));
    expect(await rangesIn(path)).toEqual([
      [GRANULE, GRANULE],
      [0, GRANULE],
    ]);
    recorder.touch(8 * GRANULE, 2 * GRANULE);
    await recorder.close();
    await recorder.close();
    recorder.touch(20 * GRANULE, 1); // nobody listens any more
    const trace = await readTrace(path);
    expect(trace.size).toBe(SIZE);
    expect((await rangesIn(path)).at(-1)).toEqual([8 * GRANULE, 2 * GRANULE]);
    expect([warnings, clock.sleeping]).toEqual([[], 0]);
  });

  test("writes at once where there is much to write", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "trace");
    const { recorder, touchApart } = await recorderTo(path);
    recorder.start();
    touchApart(0, 10_000);
    await eventually("some of it is written", async () => (await readFile(path)).length > 10_000);
    await recorder.close();
    expect(await rangesIn(path)).toHaveLength(10_000);
  });

  test("leaves a header where nothing was touched, and no file where it was never started", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "trace");
    const first = await recorderTo(path);
    await first.recorder.close();
    expect(existsSync(path)).toBe(false);
    const second = await recorderTo(path);
    second.recorder.start();
    await second.recorder.close();
    expect(await readFile(path, "utf8")).toBe(encodeTraceHeader(SIZE));
  });

  test("takes a file that is empty, and keeps it where it was never started", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "trace");
    await writeFile(path, "");
    await (await recorderTo(path)).recorder.close();
    expect(await readFile(path, "utf8")).toBe("");
    const { recorder } = await recorderTo(path);
    recorder.start();
    recorder.touch(0, 1);
    await recorder.close();
    expect(await rangesIn(path)).toEqual([[0, GRANULE]]);
  });

  test("refuses a file that holds something, and what is no file", async () => {
    await using place = await scratchDirectory();
    const at = (name: string) => join(place.path, name);
    await writeFile(at("full"), "x");
    await mkdir(at("directory"));
    execFileSync("mkfifo", [at("pipe")]);
    await expect(recorderTo(at("full"))).rejects.toThrow(/^Cannot record a trace in ".*full": it is not empty$/);
    await expect(recorderTo(at("directory"))).rejects.toThrow(/^Cannot record a trace in ".*directory": EISDIR$/);
    await expect(recorderTo(at("pipe"))).rejects.toThrow(/^Cannot record a trace in ".*pipe": ENXIO$/);
    await expect(recorderTo("/dev/null")).rejects.toThrow(
      'Cannot record a trace in "/dev/null": it is no regular file',
    );
    await expect(recorderTo(at("none/trace"))).rejects.toThrow(/^Cannot record a trace in ".*none\/trace": ENOENT$/);
    expect(await readFile(at("full"), "utf8")).toBe("x");
  });

  test("ends after as many ranges as count, with all of them written", async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "trace");
    const { recorder, clock, warnings, touchApart } = await recorderTo(path, 2 ** 34);
    recorder.start();
    for (let done = 0; done < MOST_RANGES + 50_000; done += 50_000) {
      touchApart(done, 50_000);
      await eventually("it keeps up", async () => {
        await clock.advance(1000);
        return (await stat(path)).size >= Math.min(done, MOST_RANGES - 50_000) * 13;
      });
    }
    await recorder.close();
    expect(warnings).toEqual([expect.stringMatching(/ends here: more than its 1048576 ranges would not count/)]);
    const trace = await readTrace(path);
    expect([trace.length, trace.cutOff]).toEqual([MOST_RANGES, false]);
  });

  describe("to a file that hangs", () => {
    test("gives it up, with one warning, where there is more to write than is kept for it", async () => {
      await using hanging = await hangingFile();
      const { recorder, clock, warnings, touchApart } = await recorderTo(hanging.path, 2 ** 33);
      recorder.start();
      for (let from = 0; warnings.length === 0; from += 1000) touchApart(from, 1000);
      expect(hanging.calls()).toBe(1);
      await closeAfter(5000, recorder, clock);
      expect(warnings).toEqual([expect.stringMatching(/ends here: it cannot be written fast enough/)]);
    });

    test("waits for it for a while when it is closed, and says so", async () => {
      await using hanging = await hangingFile();
      const { recorder, clock, warnings } = await recorderTo(hanging.path);
      recorder.start();
      recorder.touch(0, 1);
      await closeAfter(5000, recorder, clock);
      expect(warnings).toEqual([expect.stringMatching(/ends here: it does not answer/)]);
    });
  });

  const noTmpfs = noLoopDevices;
  test.skipIf(noTmpfs !== undefined)(
    withReason("ends on a full disk with whole lines, and one warning", noTmpfs),
    async () => {
      await using place = await mountedTmpfs(64 * 1024);
      const path = join(place.path, "trace");
      const { recorder, clock, warnings, touchApart } = await recorderTo(path);
      recorder.start();
      for (let i = 0; i < 20; i++) {
        touchApart(1000 * i, 1000);
        await clock.advance(1000);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      await recorder.close();
      expect(warnings).toEqual([
        expect.stringMatching(/^The trace ".*" ends here: ENOSPC\. What is in it can be used$/),
      ]);
      const text = await readFile(path, "utf8");
      expect(text.endsWith("\n")).toBe(true);
      const ranges = await rangesIn(path);
      expect(ranges.length).toBeGreaterThan(1000);
      expect(ranges).toEqual(ranges.map((_, i) => [2 * i * GRANULE, GRANULE]));
    },
  );
});
