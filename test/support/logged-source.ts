/** A file that tells what is read of it: nbdkit's log filter, shown as a file by nbdfuse. */
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { nbdFile } from "./nbd-loop.ts";
import { type Scratch, scratchDirectory } from "./scratch.ts";

/** Bytes from `start` to `end`. */
export interface ByteRange {
  start: number;
  end: number;
}

/** The file is at `path`. */
export interface LoggedSource extends Scratch {
  /** What has been read so far, as it was asked for. */
  reads(): ByteRange[];
}

/** Shows the bytes of `file`, read-only, and keeps a list of what is read. Needs root. */
export async function loggedSource(file: string): Promise<LoggedSource> {
  const directory = await scratchDirectory();
  const log = join(directory.path, "log");
  const nbdkit = ["[", "nbdkit", "-r", "--filter=log", "file", file, `logfile=${log}`, "]"];
  const shown = await nbdFile(nbdkit, ["--readonly"]);
  // The kernel must not read more than it was asked for.
  const device = statSync(shown.path).dev;
  writeFileSync(`/sys/class/bdi/${Math.floor(device / 256)}:${device % 256}/read_ahead_kb`, "0");
  return {
    path: shown.path,
    reads: () =>
      [...readFileSync(log, "utf8").matchAll(/ Read id=\d+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)/g)].map(
        ([, offset, count]) => ({ start: Number(offset), end: Number(offset) + Number(count) }),
      ),
    async [Symbol.asyncDispose]() {
      await shown[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** How many bytes of `ranges` lie in `window`, each counted once. */
export function bytesWithin(ranges: readonly ByteRange[], window: ByteRange): number {
  let [bytes, end] = [0, window.start];
  for (const range of ranges.toSorted((a, b) => a.start - b.start)) {
    const from = Math.max(range.start, end);
    const to = Math.min(range.end, window.end);
    if (to <= from) continue;
    bytes += to - from;
    end = to;
  }
  return bytes;
}
