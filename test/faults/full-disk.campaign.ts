// A file system that fills up under a clone, metadata and all, and then grows. A hydration ends with one line and exit code 1;
// a server goes on with what needs no space, tells clients ENOSPC for what does, and hydrates again when there is space.
// Whatever a client was told has been done is there, and nothing is called hydrated that is not.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { campaign } from "../support/campaign.ts";
import { expectHydratedRight } from "../support/hydrated-right.ts";
import { ModelClient } from "../support/model-client.ts";
import { testWith } from "../support/needs.ts";
import { seededRandom } from "../support/random.ts";
import { clone, cloneOk, eventually, expectFailure } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { type Server, startServe, stopServe } from "../support/serve.ts";
import { SMALL_FILE_SYSTEMS, type SmallKind, smallFileSystem, unfill } from "../support/small-file-system.ts";
import { SECTOR, stampSectors } from "../support/stamped-sectors.ts";
import { OPTIONS } from "./options.ts";

const { seed, shard, shards, report } = campaign(OPTIONS);
const MIB = 2 ** 20;
const SIZE = 8 * MIB;
const ENOSPC = 28;
const KINDS = Object.keys(SMALL_FILE_SYSTEMS) as SmallKind[];
const mine = <T>(cases: readonly T[]): T[] => cases.filter((_, index) => index % shards === shard);

interface FullCase {
  kind: SmallKind;
  /** What makes room. */
  relief: "grows" | "is emptied";
}
const CASES = KINDS.flatMap((kind): FullCase[] => [
  { kind, relief: "grows" },
  { kind, relief: "is emptied" },
]);

/** A source, and a clone of it on a file system that has no room for it. */
async function fullPlace(kind: SmallKind) {
  const place = await scratchDirectory();
  const small = await smallFileSystem(kind);
  const source = join(place.path, "disk.img");
  const bytes = stampSectors(Buffer.alloc(SIZE), 0, 1);
  await writeFile(source, bytes);
  await cloneOk(["create", source, "copy.img"], { cwd: small.path });
  await small.fill(3 * MIB);
  return {
    small,
    bytes,
    cwd: small.path,
    async [Symbol.asyncDispose]() {
      await small[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

describe("a file system that fills up", () => {
  for (const { kind, relief } of mine(CASES)) {
    const { machine } = SMALL_FILE_SYSTEMS[kind];
    const needs = { programs: SMALL_FILE_SYSTEMS[kind].programs, machine };

    testWith(needs, `ends a hydration, which goes on when ${kind} ${relief}`, async () => {
      await using place = await fullPlace(kind);
      const { small, bytes, cwd } = place;
      for (let time = 0; time < 2; time++) {
        const run = await clone(["hydrate", "copy.img", "--progress", "none"], { cwd });
        expectFailure(run, 1, /"\S*copy\.img": ENOSPC/);
        await cloneOk(["check", "copy.img.clone"], { cwd });
        await expectHydratedRight({ cwd, copy: "copy.img", bytes });
      }
      await (relief === "grows" ? small.grow() : unfill(small));
      await cloneOk(["hydrate", "copy.img"], { cwd });
      await cloneOk(["finalize", "copy.img"], { cwd });
      expect(Buffer.compare(await readFile(join(cwd, "copy.img")), bytes)).toBe(0);
      report({ "full file systems": 1 });
    });

    testWith(needs, `is told to clients of a server, which goes on when ${kind} ${relief}`, async () => {
      await using place = await fullPlace(kind);
      const { small, cwd } = place;
      const client = new ModelClient(SIZE / SECTOR, seededRandom(seed + CASES.findIndex((one) => one.kind === kind)));
      await using server = await startServe({ clone: "copy.img", cwd, args: ["--rate", "4M"] });
      await client.connect(server.socket);
      await client.writeUntil(ENOSPC);
      await eventually("the hydration has stalled", async () => /ENOSPC/.test(`${await stalled(server)}`));
      await small.fill(0);
      // What needs no space: to read, to flush, to commit; a whole region that is discarded takes a commit and no space.
      await client.readAll();
      await client.flush();
      await client.discardWholeRegions(65536);
      await client.flush();
      if (relief === "is emptied" || !small.growsInUse) {
        await server.kill9();
        await client.lost();
        await cloneOk(["check", "copy.img.clone"], { cwd });
        await (relief === "grows" ? small.grow() : unfill(small));
        await using again = await startServe({ clone: "copy.img", cwd });
        await client.connect(again.socket);
        await finish(client, again);
      } else {
        await small.grow();
        await finish(client, server);
      }
      await cloneOk(["check", "copy.img.clone"], { cwd });
      await cloneOk(["finalize", "copy.img"], { cwd });
      client.settle(await readFile(join(cwd, "copy.img")));
      report({ "full file systems": 1, "requests refused": client.refused });
    });
  }
});

/** The hydration comes to its end by itself, and clients may write again. */
async function finish(client: ModelClient, server: Server): Promise<void> {
  await client.readAll();
  await client.write(100);
  await client.flush();
  await server.hydrated();
  await client.readAll();
  await client.disconnect();
  await stopServe(server);
}

async function stalled(server: Server): Promise<string | null> {
  const status = (await server.status()) as unknown as { hydration: { stalled: string | null } };
  return status.hydration.stalled;
}
