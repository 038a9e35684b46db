// A server that comes back with something else of the same size under the same name, in the middle of a run.
import { join } from "node:path";
import { describe, expect } from "vitest";
import { Command } from "../../src/nbd/protocol.ts";
import { randomFile } from "../support/files.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { testWith } from "../support/needs.ts";
import { cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { type ServedStatus, startServe } from "../support/serve.ts";
import { startNbdkit } from "../support/source-servers.ts";

const MIB = 2 ** 20;
const SIZE = 16 * MIB;

async function committedRegions(cwd: string): Promise<number> {
  return oneJson<ServedStatus>(await cloneOk(["status", "x.clone", "--json"], { cwd })).hydratedRegions;
}

describe("A destination that is emptied while its server is away", () => {
  testWith({ programs: ["nbdkit"] }, "ends a hydration: what was committed is gone", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await randomFile(join(cwd, "source.img"), SIZE);
    const socket = join(cwd, "d.sock");
    const first = await startNbdkit(cwd, socket, "memory", `${SIZE}`);
    await cloneOk(["create", "source.img", `nbd+unix:///?socket=${socket}`, "--metadata", "x.clone"], { cwd });
    const hydrate = startClone(["hydrate", "x.clone", "--rate", "2M", "--progress", "none"], { cwd });
    await eventually("something is committed", async () => (await committedRegions(cwd)) > 0);
    await eventually("something more is committed", async () => (await committedRegions(cwd)) > 32);
    await first.kill();
    await using _second = await startNbdkit(cwd, socket, "memory", `${SIZE}`);
    expectFailure(await hydrate.done, 1, /it is another disk, or has lost what was flushed to it/);
  });

  testWith(
    { programs: ["nbdkit"] },
    "fails a clone that is served, and no reader takes zeros for what was there",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), SIZE);
      const socket = join(cwd, "d.sock");
      const first = await startNbdkit(cwd, socket, "memory", `${SIZE}`);
      await cloneOk(["create", "source.img", `nbd+unix:///?socket=${socket}`, "--metadata", "x.clone"], { cwd });
      await using server = await startServe({ clone: "x.clone", cwd, args: ["--no-hydrate"] });
      await using client = await NbdClient.go({ path: server.socket });
      const data = Buffer.alloc(65536, 0x5a);
      expect(await client.request({ type: Command.write, offset: MIB, data })).toMatchObject({ error: 0 });
      expect(await client.request({ type: Command.flush })).toMatchObject({ error: 0 });
      await first.kill();
      await using _second = await startNbdkit(cwd, socket, "memory", `${SIZE}`);
      expect((await client.read(MIB, 65536)).error).not.toBe(0);
      expect((await client.request({ type: Command.write, offset: 2 * MIB, data })).error).not.toBe(0);
      await eventually("the clone is failed", async () => (await server.status()).state === "failed");
    },
  );
});

describe("A source that is another one when its server is back", () => {
  testWith({ programs: ["nbdkit"] }, "gives a hydration nothing any more", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    await randomFile(join(cwd, "source.img"), SIZE);
    await randomFile(join(cwd, "other.img"), SIZE);
    const socket = join(cwd, "s.sock");
    const first = await startNbdkit(cwd, socket, "file", "source.img");
    await cloneOk(["create", `nbd+unix:///?socket=${socket}`, "x.img", "--metadata", "x.clone"], { cwd });
    const hydrate = startClone(["hydrate", "x.clone", "--rate", "2M", "--progress", "none"], { cwd });
    await eventually("something is committed", async () => (await committedRegions(cwd)) > 0);
    await first.kill();
    const second = await startNbdkit(cwd, socket, "file", "other.img");
    expectFailure(await hydrate.done, 1, /its content is another/, /--accept-changed-source/);
    await second.kill();
    // What was committed is of the right one: the copy goes on with that, and all of it is compared.
    await using _third = await startNbdkit(cwd, socket, "file", "source.img");
    await cloneOk(["hydrate", "x.clone"], { cwd });
    await cloneOk(["verify", "x.clone"], { cwd });
  });
});
