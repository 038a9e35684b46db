/**
 * A disk whose requests fail with EIO as long as a switch is on, by kind of request: nbdkit's error filter, seen over NBD or, by
 * nbdfuse, as a file. The filter knows no flush; a disk whose flushes are to fail is a script (nbdkit-eval-plugin).
 */
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { nbdFile } from "./nbd-loop.ts";
import { startNbdkit } from "./source-servers.ts";

/** A kind of requests, as nbdkit names them. */
export type FailingRequest = "pread" | "pwrite" | "zero" | "trim" | "flush";

/** Of a disk over NBD `at` is a URI, of a file its path. Disposed of, it is gone; what was written to it is in its file. */
export interface FailingDisk extends AsyncDisposable {
  readonly at: string;
  /** From here on requests of these kinds fail, all of them or some. */
  fail(...requests: FailingRequest[]): Promise<void>;
  /** From here on all succeed. */
  heal(): Promise<void>;
}

/** What there is to be made. */
export interface FailingDiskRequest {
  /** A directory for its socket and switches. */
  cwd: string;
  /** Who holds its content. */
  file: string;
  /** Bytes of it. */
  size: number;
  form: "nbd" | "file";
  /** Whether its flushes may fail; slower: a shell runs for each request. Default false. */
  flushes?: boolean;
  /** How many of the requests fail while the switch is on, percent. Default 100. */
  rate?: number;
}

/** Starts it, healthy. */
export async function failingDisk(request: FailingDiskRequest): Promise<FailingDisk> {
  const { cwd, file, form, flushes = false, rate = 100 } = request;
  const socket = join(cwd, "failing.sock");
  const trigger = (kind: FailingRequest): string => join(cwd, `fail-${kind}`);
  const filtered = (["pread", "pwrite", "zero", "trim"] as const).flatMap((kind) => [
    `error-${kind}=EIO`,
    `error-${kind}-rate=${rate}%`,
    `error-${kind}-file=${trigger(kind)}`,
  ]);
  const plugin = flushes ? ["eval", ...scripts(file, request.size, trigger("flush"))] : ["file", file];
  const server = await startNbdkit(cwd, socket, "--filter=error", ...plugin, ...filtered);
  const uri = `nbd+unix:///?socket=${socket}`;
  const shown = form === "file" ? await nbdFile([uri]) : undefined;
  const kinds: FailingRequest[] = ["pread", "pwrite", "zero", "trim", "flush"];
  const heal = async (): Promise<void> => {
    for (const kind of kinds) await rm(trigger(kind), { force: true });
  };
  return {
    at: shown?.path ?? uri,
    async fail(...requests) {
      for (const kind of requests) await writeFile(trigger(kind), "");
    },
    heal,
    async [Symbol.asyncDispose]() {
      await heal();
      await shown?.[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

/** A file as nbdkit's eval plugin serves it: `$3` is the count, `$4` the offset. */
function scripts(file: string, size: number, failing: string): string[] {
  const at = "bs=64K status=none";
  return [
    `get_size=echo ${size}`,
    `pread=dd if='${file}' skip=$4 count=$3 iflag=skip_bytes,count_bytes ${at}`,
    "can_write=exit 0",
    `pwrite=dd of='${file}' seek=$4 conv=notrunc iflag=fullblock oflag=seek_bytes ${at}`,
    "can_flush=exit 0",
    `flush=if [ -e '${failing}' ]; then echo 'EIO the disk' >&2; exit 1; fi; exit 0`,
  ];
}
