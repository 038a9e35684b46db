/** A file whose reads can be made to hang, as those of a disk on a network that is gone: nbdkit's eval plugin, shown by nbdfuse. */
import { existsSync, statSync } from "node:fs";
import { unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { nbdFile } from "./nbd-loop.ts";
import { type Scratch, scratchDirectory } from "./scratch.ts";

/** The file is at `path`. Disposed of, it is healed first, so that nothing is left hanging. */
export interface HangingSource extends Scratch {
  /** From now on reads do not end. */
  hang(): Promise<void>;
  /** From now on everything can be read, and what hung ends. */
  heal(): Promise<void>;
}

/** Shows the bytes of `file`. All of it hangs, or nothing: one read that hangs keeps nbdfuse from the others. Slow. */
export async function hangingSource(file: string): Promise<HangingSource> {
  const directory = await scratchDirectory();
  const hanging = join(directory.path, "hanging");
  // $3 is the count, $4 the offset.
  const pread = `while [ -e '${hanging}' ]; do sleep 0.05; done
    dd if='${file}' skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none`;
  const plugin = ["thread_model=echo parallel", `get_size=echo ${statSync(file).size}`, `pread=${pread}`];
  const shown = await nbdFile(["[", "nbdkit", "-r", "eval", ...plugin, "]"], ["--readonly"]);
  const heal = async () => {
    if (existsSync(hanging)) await unlink(hanging);
  };
  return {
    path: shown.path,
    hang: () => writeFile(hanging, ""),
    heal,
    async [Symbol.asyncDispose]() {
      await heal();
      await shown[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}
