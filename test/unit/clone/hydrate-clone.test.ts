import { utimesSync } from "node:fs";
import { rename, utimes } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { Clone } from "../../../src/clone/clone.ts";
import { hydrateClone } from "../../../src/clone/hydrate-clone.ts";
import { Command } from "../../../src/nbd/protocol.ts";
import { FakeNbdServer } from "../../support/fake-nbd-server.ts";
import { type Faults, FaultyDevice } from "../../support/faulty-device.ts";
import { holds, randomFile } from "../../support/files.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { create, descriptorOf, HYDRATE, hydrate, NEVER, REGION_SIZE } from "../../support/whole-clone.ts";

const SIZE = 8 * REGION_SIZE;

async function madeClone(directory: string): Promise<{ source: string; copy: string; bytes: Buffer }> {
  const [source, copy] = [join(directory, "disk.img"), join(directory, "copy.img")];
  const bytes = await randomFile(source, SIZE);
  await create(source, copy);
  return { source, copy, bytes };
}

describe("hydrateClone() with acceptChangedSource", () => {
  test.each([
    ["that had not changed before", false],
    ["that had changed before", true],
  ])("refuses a source %s and changes while it is copied", async (_, changedBefore) => {
    await using place = await scratchDirectory();
    const { source, copy } = await madeClone(place.path);
    if (changedBefore) await utimes(source, 1e9, 1e9);
    await using clone = await Clone.open({ name: copy, access: "exclusive" });
    const onStart = (): void => utimesSync(source, 2e9, 2e9);
    const request = { ...HYDRATE, acceptChangedSource: true };
    await expect(hydrateClone(clone, request, { signal: NEVER, onStart })).rejects.toThrow(
      /disk\.img" as the source: it has changed .* it was last written at 2033-05-18T03:33:20/,
    );
    expect(clone.metadata.committedCount).toBe(0);
  });

  test("keeps the acceptance once the run begins, with when it was given", async () => {
    await using place = await scratchDirectory();
    const { source, copy, bytes } = await madeClone(place.path);
    await hydrate(copy, { limit: REGION_SIZE });
    await utimes(source, 1e9, 1e9);
    await expect(hydrate(copy)).rejects.toThrow(/it has changed since the clone was created/);
    await hydrate(copy, { acceptChangedSource: true, limit: REGION_SIZE });
    const { acceptedChange, source: pinned } = await descriptorOf(copy);
    expect(Date.parse(acceptedChange ?? "")).not.toBeNaN();
    expect(pinned.fingerprint.mtimeNs).toBe("1000000000000000000");
    await hydrate(copy);
    expect(await holds(copy, bytes)).toBe(true);
  });

  test("keeps nothing where the run cannot begin", async () => {
    await using place = await scratchDirectory();
    const { source, copy } = await madeClone(place.path);
    await utimes(source, 1e9, 1e9);
    const before = await descriptorOf(copy);
    await rename(copy, `${copy}.away`);
    await expect(hydrate(`${copy}.clone`, { acceptChangedSource: true })).rejects.toThrow(/no such file/);
    expect(await descriptorOf(`${copy}.clone`)).toEqual(before);
    // Here both devices are open by the time that the destination is refused.
    const precious = join(place.path, "precious.img");
    const bytes = await randomFile(precious, SIZE);
    const request = { acceptChangedSource: true, destination: precious };
    await expect(hydrate(`${copy}.clone`, request)).rejects.toThrow(/precious\.img" .* holds data now/);
    expect(await descriptorOf(`${copy}.clone`)).toEqual(before);
    expect(await holds(precious, bytes)).toBe(true);
  });
});

/** A clone whose destination fails; both devices are attached. */
async function failingClone(copy: string, faults: Faults): Promise<Clone> {
  const clone = await Clone.open({ name: copy, access: "exclusive" });
  const destination = await clone.attachDestination({}, "read-write");
  destination.view = new FaultyDevice(destination.view, faults);
  return clone;
}

describe("hydrateClone() that fails", () => {
  test("leaves the destination marked as being at work while it runs, and settled when it ends well", async () => {
    await using place = await scratchDirectory();
    const { copy } = await madeClone(place.path);
    expect((await descriptorOf(copy)).destination).not.toHaveProperty("settled");
    await using clone = await Clone.open({ name: copy, access: "exclusive" });
    let during: unknown;
    const onStart = (): void => {
      during = clone.descriptor?.destination.settled;
    };
    await hydrateClone(clone, HYDRATE, { signal: NEVER, onStart });
    expect(during).toBeNull();
    expect(clone.descriptor?.destination.settled).toMatchObject({
      mtimeNs: expect.stringMatching(/^\d+$/),
      superblock: expect.stringMatching(/^[0-9a-f]{8}$/),
      hydratedRegions: clone.metadata.regionCount,
      hydratedDigest: clone.metadata.hydratedDigest(),
      free: expect.stringMatching(/^(\d+ ){16}[0-9a-f]{64}$/),
    });
  });

  test("writes no descriptor after a failed commit", async () => {
    await using place = await scratchDirectory();
    const { copy } = await madeClone(place.path);
    {
      await using clone = await failingClone(copy, { failFlush: () => true });
      const settle = vi.spyOn(clone, "settle");
      await expect(hydrateClone(clone, HYDRATE, { signal: NEVER })).rejects.toMatchObject({ errno: "EIO" });
      expect(settle).not.toHaveBeenCalled();
    }
    const { destination, unreadable } = await descriptorOf(copy);
    expect(destination.settled).toBeNull();
    expect(unreadable).toEqual({ ranges: [], inexact: false });
    await hydrate(copy);
  });

  test("reports the first error, also where its books cannot be closed after it", async () => {
    await using place = await scratchDirectory();
    const { copy } = await madeClone(place.path);
    await using clone = await failingClone(copy, { failWrite: () => true, errno: "ENOSPC" });
    vi.spyOn(clone, "settle").mockRejectedValue(new Error("the descriptor cannot be written"));
    await expect(hydrateClone(clone, HYDRATE, { signal: NEVER })).rejects.toMatchObject({ errno: "ENOSPC" });
  });
});

test("hydrateClone() flushes a destination on a server before it looks at anything of it", async () => {
  await using place = await scratchDirectory();
  const source = join(place.path, "disk.img");
  const bytes = await randomFile(source, SIZE);
  await using server = await FakeNbdServer.start({ size: SIZE });
  const uri = `nbd+unix:///${server.options.exports[0] ?? ""}?socket=${server.path}`;
  const metadata = join(place.path, "meta.clone");
  await create(source, uri, { metadata });
  await hydrate(metadata, { limit: REGION_SIZE });
  server.log.length = 0;
  await hydrate(metadata);
  expect(server.log[0]).toMatch(new RegExp(`^${Command.flush} `));
  const copy = Buffer.alloc(SIZE);
  await server.disk.read(0, copy);
  expect(Buffer.compare(copy, bytes)).toBe(0);
});
