// A destination behind qemu-nbd that is killed and started anew while it is written to, and a source behind nbdkit that answers
// errors by chance: the copy is byte for byte the source all the same, and a clone that has lost what clients wrote says so.
import { join } from "node:path";
import { expect } from "vitest";
import { Command, NbdErrno } from "../../src/nbd/protocol.ts";
import { holds, randomFile, sparseFile } from "../support/files.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { testWith } from "../support/needs.ts";
import { clone, cloneOk, eventually, oneJson, startClone } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { type ServedStatus, startServe } from "../support/serve.ts";
import { type Running, startAtSocket, startNbdkit } from "../support/source-servers.ts";

const MIB = 2 ** 20;
const SIZE = 32 * MIB;

/** disk.img, a clone of it to a raw image behind qemu-nbd, and a way to kill that and start it anew. */
async function setUp(cwd: string) {
  const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
  await sparseFile(join(cwd, "copy.raw"), SIZE, []);
  const socket = join(cwd, "dest.sock");
  const start = (): Promise<Running> =>
    startAtSocket(["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", socket, "copy.raw"], cwd, socket);
  let server = await start();
  await cloneOk(["create", "disk.img", `nbd+unix:///?socket=${socket}`, "--metadata", "copy.clone"], { cwd });
  return {
    bytes,
    async restart(): Promise<void> {
      await server.kill("SIGKILL");
      server = await start();
    },
    [Symbol.asyncDispose]: () => server.kill(),
  };
}

async function hydratedRegions(cwd: string): Promise<number> {
  return oneJson<ServedStatus>(await cloneOk(["status", "copy.clone", "--json"], { cwd })).hydratedRegions;
}

testWith(
  { programs: ["qemu-nbd"] },
  "clone hydrate to a server that is killed and started anew, again and again, ends with a copy of the source",
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await using destination = await setUp(cwd);
    const hydrate = startClone(["hydrate", "copy.clone", "--rate", "8M", "--progress", "none"], { cwd });
    for (let before = 0, times = 0; times < 6; times++) {
      await eventually("something more is hydrated", async () => {
        const now = await hydratedRegions(cwd);
        return now > before || now === SIZE / 65536;
      });
      before = await hydratedRegions(cwd);
      await destination.restart();
    }
    const { code, stderr } = await hydrate.done;
    expect(code, stderr).toBe(0);
    expect(stderr).toContain("is there again");
    expect(await holds(join(cwd, "copy.raw"), destination.bytes)).toBe(true);
    await cloneOk(["check", "copy.clone"], { cwd });
    await cloneOk(["finalize", "copy.clone", "--verify"], { cwd });
  },
);

testWith(
  { programs: ["qemu-nbd", "nbdcopy"] },
  "clone serve over a server that is killed and started anew shows the source, and fails once clients have written and not flushed",
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    await using destination = await setUp(cwd);
    await using server = await startServe({ clone: "copy.clone", cwd, args: ["--rate", "512K"] });
    for (let times = 0; times < 3; times++) {
      const before = await hydratedRegions(cwd);
      await eventually("something more is hydrated", async () => {
        const now = await hydratedRegions(cwd);
        return now > before || now === SIZE / 65536;
      });
      await destination.restart();
      await run("nbdcopy", server.uri, join(cwd, "read.img"));
      expect(await holds(join(cwd, "read.img"), destination.bytes)).toBe(true);
    }
    await using client = await NbdClient.go({ path: server.socket });
    const write = (offset: number, value: number) =>
      client.request({ type: Command.write, offset, data: Buffer.alloc(65536, value) });
    const flush = () => client.request({ type: Command.flush });
    // What is flushed is nobody's to lose.
    expect([await write(MIB, 0x5a), await flush()]).toMatchObject([{ error: 0 }, { error: 0 }]);
    await destination.restart();
    expect(await write(2 * MIB, 0x77)).toMatchObject({ error: 0 });
    expect(await flush()).toMatchObject({ error: 0 });
    await destination.restart();
    await run("nbdcopy", server.uri, join(cwd, "read.img"));
    destination.bytes.fill(0x5a, MIB, MIB + 65536).fill(0x77, 2 * MIB, 2 * MIB + 65536);
    expect(await holds(join(cwd, "read.img"), destination.bytes)).toBe(true);
    expect((await server.status()).state).not.toContain("failed");
    // What is not flushed is lost, and nobody is told that it is safe.
    expect(await write(3 * MIB, 0x33)).toMatchObject({ error: 0 });
    await destination.restart();
    expect(await flush()).toMatchObject({ error: NbdErrno.EIO });
    expect((await server.status()).state).toContain("failed");
    const read = await client.read(MIB, 2 * MIB);
    expect(Buffer.compare(read.data, destination.bytes.subarray(MIB, 3 * MIB))).toBe(0);
  },
  120_000,
);

testWith(
  { programs: ["nbdkit"] },
  "clone hydrate from a server that answers one read in twenty with an error ends with a copy of the source",
  async () => {
    await using place = await scratchDirectory();
    const cwd = place.path;
    const bytes = await randomFile(join(cwd, "disk.img"), SIZE);
    const socket = join(cwd, "source.sock");
    await using _server = await startNbdkit(cwd, socket, "--filter=error", "file", "disk.img", "error-pread-rate=5%");
    const source = `nbd+unix:///?socket=${socket}`;
    await eventually("it is created", async () => (await clone(["create", source, "copy.img"], { cwd })).code === 0);
    // Chance may be against a region four times in a row: then it is listed, and the next run has it.
    await eventually("it is hydrated", async () => {
      const { code, stderr } = await clone(["hydrate", "copy.img", "--progress", "none"], { cwd });
      expect([0, 5], stderr).toContain(code);
      return code === 0;
    });
    expect(await holds(join(cwd, "copy.img"), bytes)).toBe(true);
  },
);
