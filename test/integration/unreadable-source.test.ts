// A source on the network whose samples cannot be read for a while. Nobody knows then whether it is the right one, and what was
// known of the right one is not forgotten.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { Command } from "../../src/nbd/protocol.ts";
import { FakeNbdServer } from "../support/fake-nbd-server.ts";
import { noise } from "../support/layout.ts";
import { clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 8 * 2 ** 20;
const SAMPLE_BYTES = 16384;

async function serverOf(content: Buffer): Promise<FakeNbdServer> {
  const server = await FakeNbdServer.start({ size: SIZE });
  server.disk = new MemoryDevice({ size: SIZE, content });
  return server;
}

function uriOf(server: FakeNbdServer): string {
  return `nbd+unix:///disk?socket=${server.path}`;
}

/** Has the samples of the next fingerprint fail, as often as they are tried: all of them, or the first so many. */
function failSamples(server: FakeNbdServer, samples = 9): void {
  let left = samples * 3;
  server.options.onRequest = (request, _data, peer) => {
    if (request.type !== Command.read || request.length !== SAMPLE_BYTES || left === 0) return false;
    if (Math.ceil((request.offset * 8) / (SIZE - SAMPLE_BYTES)) >= samples) return false;
    left -= 1;
    peer.error(request, 5, "bad sector");
    return true;
  };
}

interface Dumped {
  descriptor: { source: { uri: string; fingerprint: { sample: string } }; acceptedChange?: string };
}

async function pinned(cwd: string): Promise<Dumped["descriptor"]["source"]> {
  return oneJson<Dumped>(await cloneOk(["dump", "x.clone", "--json"], { cwd })).descriptor.source;
}

async function hydratedRegions(cwd: string): Promise<number> {
  const status = await cloneOk(["status", "x.clone", "--json"], { cwd });
  return oneJson<{ hydratedRegions: number }>(status).hydratedRegions;
}

/** A clone of what one server has, and another server. */
async function cloneAndOther(other: Buffer) {
  const place = await scratchDirectory();
  const cwd = place.path;
  const [first, second] = [await serverOf(noise(SIZE, 1)), await serverOf(other)];
  await cloneOk(["create", uriOf(first), "x.img", "--metadata", "x.clone"], { cwd });
  return {
    cwd,
    second,
    async [Symbol.asyncDispose]() {
      await second[Symbol.asyncDispose]();
      await first[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

describe("A source that moves to another server", () => {
  test("is refused while its samples cannot be read, and what was pinned stays", async () => {
    await using moved = await cloneAndOther(noise(SIZE, 2));
    const { cwd, second } = moved;
    await cloneOk(["hydrate", "x.clone", "--limit", "4M"], { cwd });
    const before = await pinned(cwd);
    failSamples(second);
    const run = await clone(["hydrate", "x.clone", "--source", uriOf(second)], { cwd });
    expectFailure(run, 1, /as the source: too few of its samples can be read to know it/, /--accept-changed-source/);
    expect(await pinned(cwd)).toEqual(before);
  });

  test("is the same though some samples cannot be read, and those stay pinned as they were", async () => {
    await using moved = await cloneAndOther(noise(SIZE, 1));
    const { cwd, second } = moved;
    const before = await pinned(cwd);
    failSamples(second, 3);
    await cloneOk(["hydrate", "x.clone", "--source", uriOf(second)], { cwd });
    const after = await pinned(cwd);
    expect(after.uri).toContain(second.path);
    expect(after.fingerprint).toEqual(before.fingerprint);
  });

  test("is taken at the user's word where samples cannot be read, and is still known by them later", async () => {
    await using moved = await cloneAndOther(noise(SIZE, 1));
    const { cwd, second } = moved;
    const before = await pinned(cwd);
    failSamples(second);
    const args = ["hydrate", "x.clone", "--source", uriOf(second), "--accept-changed-source", "--limit", "1M"];
    const run = await clone(args, { cwd });
    expect(run.code, run.stderr).toBe(0);
    expect(run.stderr).toContain("may have changed since the clone was created (too few of its samples can be read");
    expect((await pinned(cwd)).fingerprint).toEqual(before.fingerprint);
    second.options.onRequest = undefined;
    second.disk = new MemoryDevice({ size: SIZE, content: noise(SIZE, 2) });
    expectFailure(await clone(["hydrate", "x.clone"], { cwd }), 1, /its content is another/);
  });
});

test("a source none of whose samples can be read is cloned, with a warning, and found again", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await using server = await serverOf(noise(SIZE, 1));
  failSamples(server);
  const created = await clone(["create", uriOf(server), "x.img", "--metadata", "x.clone"], { cwd });
  expect(created.stderr).toMatch(/Warning: No sample of "[^"]+" can be read/);
  expect((await pinned(cwd)).fingerprint.sample).toMatch(/^(- ){8}-$/);
  await cloneOk(["hydrate", "x.clone"], { cwd });
  server.options.onRequest = undefined;
  await cloneOk(["verify", "x.clone"], { cwd });
});

test("a destination that nobody could compare after a run was killed is not taken for a copy", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const content = noise(SIZE, 1);
  await using server = await serverOf(content);
  await cloneOk(["create", uriOf(server), "x.img", "--metadata", "x.clone"], { cwd });
  await cloneOk(["hydrate", "x.clone", "--limit", "2M"], { cwd });
  const committed = await hydratedRegions(cwd);
  const running = startClone(["hydrate", "x.clone", "--rate", "1M", "--progress", "none"], { cwd });
  await eventually("it is at work", async () => (await hydratedRegions(cwd)) > committed);
  running.child.kill("SIGKILL");
  await running.done;
  await writeFile(join(cwd, "x.img"), Buffer.alloc(SIZE));
  server.options.onRequest = (request, _data, peer) => {
    if (request.type !== Command.read || request.length !== 65536) return false; // as they are compared
    peer.error(request, 5, "bad sector");
    return true;
  };
  const limited = await clone(["hydrate", "x.clone", "--limit", "64K"], { cwd });
  expectFailure(limited, 1, /none of its samples could be compared/, /--accept-changed-source/);
  server.options.onRequest = undefined;
  expectFailure(await clone(["hydrate", "x.clone"], { cwd }), 1, /is called hydrated, but differs from the source/);
});
