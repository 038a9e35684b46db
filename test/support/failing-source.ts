/** A file whose reads fail in places, as a worn disk's do: nbdkit's eval plugin, mounted by nbdfuse. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, statSync } from "node:fs";
import { mkdir, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { eventually } from "./run-clone.ts";
import { hasProgram, run, type Scratch, scratchDirectory } from "./scratch.ts";

/** Why no such file can be made here, or undefined. */
export const noFailingSource: string | undefined = whyNot();

function whyNot(): string | undefined {
  for (const program of ["nbdkit", "nbdfuse", "fusermount3"]) if (!hasProgram(program)) return `needs ${program}`;
  if (!existsSync("/dev/fuse")) return "needs /dev/fuse";
  return process.getuid?.() === 0 ? undefined : "needs root";
}

/** The file is at `path`. */
export interface FailingSource extends Scratch {
  /** From now on everything can be read. */
  heal(): Promise<void>;
  /** How many reads have failed. */
  failures(): number;
}

/** Shows the bytes of `file`, but reading any of `start` to `end` fails with EIO; writing none. Slow: a shell runs for every read. */
export async function failingSource(
  file: string,
  { start, end }: { start: number; end: number },
): Promise<FailingSource> {
  const directory = await scratchDirectory();
  const mount = join(directory.path, "mnt");
  const log = join(directory.path, "failures");
  const bad = join(directory.path, "bad");
  await mkdir(mount);
  await writeFile(bad, "");
  await writeFile(log, "");
  // $3 is the count, $4 the offset.
  const pread = `if [ -e '${bad}' ] && [ $4 -lt ${end} ] && [ $(($4+$3)) -gt ${start} ]; then
    echo . >> '${log}'; echo 'EIO unreadable' >&2; exit 1; fi
    dd if='${file}' skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none`;
  const pwrite = `dd of='${file}' seek=$4 oflag=seek_bytes conv=notrunc status=none`;
  const size = `get_size=echo ${statSync(file).size}`;
  const plugin = ["nbdkit", "eval", size, `pread=${pread}`, `pwrite=${pwrite}`];
  const server = spawn("nbdfuse", [join(mount, "disk.img"), "[", ...plugin, "]"], { stdio: "ignore" });
  const ended = once(server, "exit");
  const path = join(mount, "disk.img");
  await eventually("the file is there", () => existsSync(path));
  return {
    path,
    heal: () => unlink(bad),
    failures: () => readFileSync(log, "utf8").length / 2,
    async [Symbol.asyncDispose]() {
      await run("fusermount3", "-u", mount);
      await ended;
      await directory[Symbol.asyncDispose]();
    },
  };
}
