/**
 * One disk whose every write and flush qemu logs, in front of which our program works: destination and metadata are two
 * slices of it, so that one log tells the order of both.
 *
 *     clone ──► NBD ─┬─► [ nbdkit ] ──► raw, offset 0 ──┐
 *                    └─► a file, by nbdfuse ◄── [ nbdkit ] ◄── raw, behind it ──┴──► blklogwrites ──► disk
 *                                                                                         └─────────► log
 *
 * A flush in the log does not tell which slice it was for. So nbdkit can swallow those of one slice: then all flushes in the
 * log are the other's, and what is durable because of them is so because of them alone.
 *
 * qemu logs a request when it is done: a write beside a flush that is under way would seem to be covered by it. Where that
 * matters nbdkit lets the destination have one request at a time.
 */
import { open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { nbdFile } from "./nbd-loop.ts";
import { type Running, startAtSocket, startNbdkit } from "./source-servers.ts";
import { countLogged } from "./write-log.ts";

/** Whose flushes reach the disk. */
export type Flushes = "both" | "destination" | "metadata";

/** What the disk is to be. */
export interface LoggedDiskRequest {
  /** An empty directory. */
  cwd: string;
  /** Bytes of the destination; its content before is `garbage`. */
  destination: Buffer;
  /** Whose flushes reach the disk. */
  flushes: Flushes;
}

/** A disk in two parts. Disposed of, its servers are ended. */
export interface LoggedDisk extends AsyncDisposable {
  /** What the destination is known by, also before `log()`. */
  readonly uri: string;
  /** From here on everything is logged. `metadata` becomes the second slice; resolves to the path it is to be used by. */
  log(metadata: Buffer): Promise<string>;
  /** Entries logged so far. */
  logged(): Promise<number>;
  /** The path of the log. */
  readonly logPath: string;
}

/** Serves the destination, without a log as long as `log()` has not been called. */
export async function startLoggedDisk({ cwd, destination, flushes }: LoggedDiskRequest): Promise<LoggedDisk> {
  const [disk, logPath] = [join(cwd, "disk"), join(cwd, "disk.log")];
  const outer = join(cwd, "destination.sock");
  await writeFile(disk, destination);
  await writeFile(logPath, "");
  let servers: AsyncDisposable[] = [await startNbdkit(cwd, outer, "file", disk)];
  const end = async (): Promise<void> => {
    const running = servers.toReversed();
    servers = [];
    for (const server of running) await server[Symbol.asyncDispose]();
  };

  const log = async (metadata: Buffer): Promise<string> => {
    await end();
    await append(disk, metadata);
    const inner = join(cwd, "qemu.sock");
    servers.push(await startQemu({ cwd, disk, logPath, inner, sizes: [destination.length, metadata.length] }));
    const swallow = "fuamode=discard";
    const serial = ["--filter=noparallel", "serialize=requests"];
    const [filters, ...settings] = flushes === "metadata" ? ["--filter=fua", swallow] : serial;
    const slice = (name: string): string[] => ["nbd", `socket=${inner}`, `export=${name}`];
    servers.push(await startNbdkit(cwd, outer, filters as string, ...slice("destination"), ...settings));
    const uri = `nbd+unix:///metadata?socket=${inner}`;
    const proxy = ["[", "nbdkit", "--filter=fua", ...slice("metadata"), swallow, "]"];
    const file = await nbdFile(flushes === "destination" ? proxy : [uri]);
    servers.push(file);
    return file.path;
  };

  return {
    uri: `nbd+unix:///?socket=${outer}`,
    log,
    logPath,
    logged: () => countLogged(logPath),
    [Symbol.asyncDispose]: end,
  };
}

/** The daemon, with the disk's slices as exports `destination` and `metadata`. */
async function startQemu(what: {
  cwd: string;
  disk: string;
  logPath: string;
  inner: string;
  sizes: [destination: number, metadata: number];
}): Promise<Running> {
  const [size, metadataSize] = what.sizes;
  const node = (options: string): string[] => ["--blockdev", options];
  const slice = (name: string, offset: number, bytes: number): string[] => [
    ...node(`driver=raw,node-name=${name},file=logged,offset=${offset},size=${bytes},discard=unmap`),
    ...["--export", `type=nbd,id=${name}-export,node-name=${name},name=${name},writable=on`],
  ];
  const words = [
    "qemu-storage-daemon",
    ...node(`driver=file,node-name=disk,filename=${what.disk},discard=unmap`),
    ...node(`driver=file,node-name=log,filename=${what.logPath}`),
    // The log's superblock counts each entry at once, so that we can look how far it is.
    ...node(
      "driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=512,log-super-update-interval=1,discard=unmap",
    ),
    ...["--nbd-server", `addr.type=unix,addr.path=${what.inner},max-connections=0`],
    ...slice("destination", 0, size),
    ...slice("metadata", size, metadataSize),
  ];
  return await startAtSocket(words, what.cwd, what.inner);
}

async function append(path: string, bytes: Buffer): Promise<void> {
  const file = await open(path, "a");
  try {
    await file.write(bytes);
    await file.sync();
  } finally {
    await file.close();
  }
}
