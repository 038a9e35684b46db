// An order over a source that is far away, with nbdkit's log to tell what was asked of it and when.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { holds, randomFile } from "../support/files.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { testWith } from "../support/needs.ts";
import { cloneOk } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";
import { startNbdkit } from "../support/source-servers.ts";

const KIB = 1024;
const REGION = 64 * KIB;
const REGIONS = 256;
const SIZE = REGIONS * REGION;
/** All over the image, no two of them neighbours, none of the first regions, which are hydrated first without an order. */
const READS = Array.from({ length: 40 }, (_, i) => (20 + ((i * 37) % 117) * 2) * REGION + 8 * KIB);
const READ = 16 * KIB;

describe("An order over NBD", () => {
  testWith({ programs: ["nbdkit"] }, "has what the first start needed asked for before what nobody needs", async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
    const log = join(cwd, "log");
    const socket = join(cwd, "source.sock");
    const filters = ["-r", "--filter=log", "--filter=delay"];
    const parameters = [`logfile=${log}`, "delay-read=10ms"];
    await using _source = await startNbdkit(cwd, socket, ...filters, "file", join(cwd, "disk.img"), ...parameters);

    /** Starts from a new clone. Resolves to the regions in the order in which the source was asked for them. */
    const start = async (name: string, args: readonly string[]): Promise<number[]> => {
      await cloneOk(["create", `nbd+unix:///?socket=${socket}`, name], { cwd });
      await using server = await startServe({ cwd, clone: name, args: [...args, "--no-hydrate"] });
      const before = (await readFile(log, "utf8")).length; // the source's samples are read before it is ready
      await server.tune("--resume");
      await using client = await NbdClient.go({ path: server.socket });
      for (const offset of READS) {
        const { data } = await client.read(offset, READ);
        expect(Buffer.compare(data, bytes.subarray(offset, offset + READ))).toBe(0);
      }
      await server.hydrated();
      await stopServe(server);
      expect(await holds(join(cwd, name), bytes)).toBe(true);
      const lines = (await readFile(log, "utf8")).slice(before);
      const offsets = [...lines.matchAll(/ Read id=\d+ offset=(0x[0-9a-f]+)/g)].map(([, offset]) => Number(offset));
      return offsets.map((offset) => Math.floor(offset / REGION));
    };
    await start("first.img", ["--record-trace", "boot.trace"]);
    const asked = await start("second.img", ["--order", "boot.trace"]);
    const needed = READS.map((offset) => Math.floor(offset / REGION));
    expect(asked).toEqual(expect.arrayContaining(needed));
    const last = Math.max(...needed.map((region) => asked.indexOf(region)));
    // What lies next to a read may come in between, but not the beginning of all the rest.
    expect(asked.indexOf(0)).toBeGreaterThan(last);
  });
});
