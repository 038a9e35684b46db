// A source that is away, or hangs, while what it could not give before is read once more: an NBD server in this process, which
// fails in some regions at first, then hangs there or goes away. Nothing may be given up that nobody has said to give up.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { formatNbdUri } from "../../src/nbd/client/nbd-uri.ts";
import { Command } from "../../src/nbd/protocol.ts";
import { FakeNbdServer } from "../support/fake-nbd-server.ts";
import { holds } from "../support/files.ts";
import { noise } from "../support/layout.ts";
import { clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { startServe } from "../support/serve.ts";

const REGION = 65536;
const SIZE = 16 * REGION;
const BAD = [3, 7, 8];
const EIO = 5;

/** What the server does with reads of the bad regions. */
type Mood = "fails" | "hangs" | "heals";

async function setUp() {
  const place = await scratchDirectory();
  const bytes = noise(SIZE, 1);
  const state = { mood: "fails" as Mood, hanging: 0 };
  const server = await FakeNbdServer.start({
    size: SIZE,
    onRequest({ type, offset, length, ...request }, _, peer) {
      const isBad = BAD.some((region) => offset < (region + 1) * REGION && offset + length > region * REGION);
      if (type !== Command.read || !isBad || state.mood === "heals") return false;
      if (state.mood === "hangs") state.hanging += 1;
      else peer.error({ type, offset, length, ...request }, EIO);
      return true;
    },
  });
  await server.disk.write(0, bytes);
  const cwd = place.path;
  await cloneOk(["create", formatNbdUri(server.address), "copy.img"], { cwd });
  return {
    cwd,
    bytes,
    server,
    state,
    metadata: join(cwd, "copy.img.clone"),
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

const FINALIZE = ["finalize", "copy.img", "--accept-unreadable"];

/** Neither finalized nor fewer regions missing than before. */
async function expectUntouched(cwd: string): Promise<void> {
  const status = oneJson(await cloneOk(["status", "copy.img", "--json"], { cwd }));
  expect(status).toMatchObject({ hydratedRegions: 13, unreadableRegions: 3 });
  expect(status.state).not.toBe("finalized");
}

test.for([
  ["SIGINT", 130],
  ["SIGTERM", 143],
] as const)("%s ends a finalize that waits for the source, and gives nothing up", async ([signal, code]) => {
  await using h = await setUp();
  const { cwd, state } = h;
  expect((await clone(["hydrate", "copy.img", "--retry", "0"], { cwd })).code).toBe(5);
  state.mood = "hangs";
  const running = startClone(FINALIZE, { cwd });
  await eventually("it waits", () => state.hanging > 0);
  running.child.kill(signal);
  const run = await running.done;
  expect([run.code, run.stdout]).toEqual([code, ""]);
  expect(existsSync(h.metadata)).toBe(true);
  await expectUntouched(cwd);
  state.mood = "heals";
  expect(await cloneOk(FINALIZE, { cwd })).toMatch(/^Finalized/);
  expect(await holds(join(cwd, "copy.img"), h.bytes)).toBe(true);
});

test("a server that is away is no source that is gone: finalize says so, and does without it only when told to", async () => {
  await using h = await setUp();
  const { cwd, server } = h;
  expect((await clone(["hydrate", "copy.img", "--retry", "0"], { cwd })).code).toBe(5);
  await server.stop();
  expectFailure(await clone(FINALIZE, { cwd }), 1, /no such socket/, /finalize again .*--without-source/);
  await expectUntouched(cwd);
  for (const option of ["--verify", "--source=disk.img"]) {
    expect((await clone([...FINALIZE, "--without-source", option], { cwd })).code).toBe(2);
  }
  await expectUntouched(cwd);
  const run = await clone([...FINALIZE, "--without-source", "--json"], { cwd });
  expect(run.code, run.stderr).toBe(5);
  expect(oneJson(run.stdout)).toMatchObject({
    unreadable: [
      [3, 4],
      [7, 9],
    ],
    metadata: null,
  });
  for (const region of BAD) h.bytes.fill(0, region * REGION, (region + 1) * REGION);
  expect(await holds(join(cwd, "copy.img"), h.bytes)).toBe(true);
});

test("a source that is slow to answer is not given up by the server of a clone, unless it is told to", async () => {
  await using h = await setUp();
  const { cwd, state } = h;
  await using _server = await startServe({ cwd, clone: "copy.img", args: ["--retry", "0", "--source-timeout", "2"] });
  expect((await clone(["hydrate", "copy.img"], { cwd })).code).toBe(5);
  state.mood = "hangs";
  expectFailure(await clone(FINALIZE, { cwd }), 1, /Cannot read .*has not answered for 2 s/, /--without-source/);
  expect(existsSync(h.metadata)).toBe(true);
  const run = await clone([...FINALIZE, "--without-source", "--json"], { cwd });
  expect([run.code, existsSync(h.metadata)], run.stderr).toEqual([5, false]);
});

test("a server of a clone that is ended while it finalizes gives nothing up, and goes on another time", async () => {
  await using h = await setUp();
  const { cwd, state } = h;
  const server = await startServe({ cwd, clone: "copy.img", args: ["--retry", "0"] });
  expect((await clone(["hydrate", "copy.img"], { cwd })).code).toBe(5);
  state.mood = "hangs";
  const asked = clone(FINALIZE, { cwd });
  await eventually("it waits", () => state.hanging > 0);
  await server.stop();
  expect((await asked).code).toBe(1);
  expect(existsSync(h.metadata)).toBe(true);
  state.mood = "heals";
  await cloneOk(["hydrate", "copy.img"], { cwd });
  await cloneOk(["finalize", "copy.img", "--verify"], { cwd });
  expect(await holds(join(cwd, "copy.img"), h.bytes)).toBe(true);
});
