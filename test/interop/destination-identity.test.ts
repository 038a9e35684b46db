// A disk behind NBD has no name of its own: it is known by what it holds. And what was flushed to it, or is to be, is not
// given up because somebody wants to stop.
import { truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { randomFile } from "../support/files.ts";
import { testWith } from "../support/needs.ts";
import { clone, cloneOk, expectFailure, oneJson } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { startServe } from "../support/serve.ts";
import { startNbdkit } from "../support/source-servers.ts";

const MIB = 1024 * 1024;
const SIZE = 8 * MIB;

describe("Another disk of the same size under the destination's URI", () => {
  testWith(
    { programs: ["nbdkit", "qemu-io"] },
    "is refused, also where clients have written to the first",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), SIZE);
      await randomFile(join(cwd, "other.img"), SIZE);
      await writeFile(join(cwd, "one.img"), "");
      await truncate(join(cwd, "one.img"), SIZE);
      const socket = join(cwd, "d.sock");
      let destination = await startNbdkit(cwd, socket, "file", join(cwd, "one.img"));
      await cloneOk(["create", "source.img", `nbd+unix:///?socket=${socket}`, "--metadata", "x.clone"], { cwd });
      {
        await using server = await startServe({ clone: "x.clone", cwd, args: ["--no-hydrate"] });
        await run("qemu-io", "-f", "raw", server.uri, "-c", "write -P 7 0 64k", "-c", "flush");
        expect((await server.stop()).code).toBe(0);
      }
      await destination.kill();
      destination = await startNbdkit(cwd, socket, "file", join(cwd, "other.img"));
      const refused = await clone(["hydrate", "x.clone"], { cwd });
      expectFailure(refused, 1, /does not hold what the clone has left there/, /--accept-changed-source/);
      await destination.kill();
      destination = await startNbdkit(cwd, socket, "file", join(cwd, "one.img"));
      await cloneOk(["hydrate", "x.clone"], { cwd });
      await destination.kill();
    },
  );
});

describe("A destination whose flush takes longer than anybody likes to wait", () => {
  testWith(
    { programs: ["nbdkit", "qemu-io"] },
    "is flushed all the same when the server is told to end",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), SIZE);
      const disk = join(cwd, "disk.raw");
      await writeFile(disk, "");
      await truncate(disk, SIZE);
      const socket = join(cwd, "d.sock");
      const dd = "iflag=count_bytes,skip_bytes conv=notrunc status=none";
      await using _destination = await startNbdkit(
        ...[cwd, socket, "eval"],
        `get_size=echo ${SIZE}`,
        `pread=dd if=${disk} skip=$4 count=$3 ${dd}`,
        `pwrite=dd of=${disk} oflag=seek_bytes seek=$4 iflag=fullblock conv=notrunc status=none`,
        "can_write=exit 0",
        "can_flush=exit 0",
        "flush=sleep 14",
      );
      await cloneOk(["create", "source.img", `nbd+unix:///?socket=${socket}`, "--metadata", "x.clone"], { cwd });
      await using server = await startServe({ clone: "x.clone", cwd, args: ["--no-hydrate"] });
      const writing = run(
        "qemu-io",
        "-f",
        "raw",
        "-t",
        "unsafe",
        server.uri,
        "-c",
        "write -P 7 0 64k",
        "-c",
        "sleep 1000",
      );
      await writing;
      const { code, stderr } = await server.stop();
      expect(code, stderr).toBe(0);
      const { hydratedRegions } = oneJson<{ hydratedRegions: number }>(
        await cloneOk(["status", "x.clone", "--json"], { cwd }),
      );
      expect(hydratedRegions).toBe(1);
    },
    120_000,
  );
});
