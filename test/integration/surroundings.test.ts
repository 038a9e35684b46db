// What surrounds the program does not mislead or end it: others that use its files, nobody who reads what it says, a system
// without /sys, a signal too early.
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { FileDevice } from "../../src/device/file-device.ts";
import { acquireLock } from "../../src/device/lock.ts";
import { holds, randomFile } from "../support/files.ts";
import { CLONE, clone, eventually, expectFailure, startClone } from "../support/run-clone.ts";
import { hasProgram, loopDevice, noLoopDevices, run, scratchDirectory, withReason } from "../support/scratch.ts";
import { clonedTo, IMAGE_SIZE } from "../support/whole-clone.ts";

describe("a destination that is in use", () => {
  test("by another clone is neither verified nor put into a table", async () => {
    await using place = await scratchDirectory();
    const { copy } = await clonedTo(place.path, IMAGE_SIZE);
    await using device = await FileDevice.open(copy, { access: "read-write" });
    await using _lock = await acquireLock(device);
    for (const args of [["verify"], ["finalize", "--table"]]) {
      expectFailure(
        await clone([...args, copy]),
        4,
        new RegExp(`copy\\.img": it is in use by process ${process.pid} `),
      );
    }
  });

  test.skipIf(noLoopDevices !== undefined)(
    withReason("by a loop device that can write is not verified", noLoopDevices),
    async () => {
      await using place = await scratchDirectory();
      const { copy } = await clonedTo(place.path, IMAGE_SIZE);
      await using device = await loopDevice(copy);
      expectFailure(await clone(["verify", copy]), 4, new RegExp(`in use by loop device ${device.path}`));
    },
  );
});

describe("standard error", () => {
  test("that is full or not read any more does not end a hydration", async () => {
    await using place = await scratchDirectory();
    const { bytes, copy } = await clonedTo(place.path, 0);
    const hydrating = `"${process.execPath}" "${CLONE}" hydrate "${copy}" --progress json --rate 1M`;
    await run("sh", "-c", `${hydrating} --limit 512K 2>/dev/full`);
    const running = startClone(["hydrate", copy, "--progress", "json", "--rate", "1M"]);
    running.child.stderr?.destroy();
    expect(await running.done).toMatchObject({ code: 0, signal: null });
    expect(await holds(copy, bytes)).toBe(true);
  });
});

const noUnshare = noLoopDevices ?? (hasProgram("unshare") ? undefined : "needs unshare");
test.skipIf(noUnshare !== undefined)(withReason("clone create works where there is no /sys", noUnshare), async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  const bytes = await randomFile(source, IMAGE_SIZE);
  const creating = `umount -l /sys && exec "${process.execPath}" "${CLONE}" copy "${source}" "${copy}"`;
  await run("unshare", "--mount", "sh", "-c", creating);
  expect(await holds(copy, bytes)).toBe(true);
});

test("SIGUSR1 opens no debugger, whichever command runs", async () => {
  await using place = await scratchDirectory();
  const { copy } = await clonedTo(place.path, IMAGE_SIZE / 2);
  const watching = startClone(["status", copy, "--watch", "1"]);
  await eventually("the status is shown", () => watching.output().stdout !== "");
  const before = watching.output().stdout.length;
  watching.child.kill("SIGUSR1");
  await eventually("it is shown again", () => watching.output().stdout.length > before);
  watching.child.kill("SIGTERM");
  const { stderr } = await watching.done;
  expect(stderr).not.toMatch(/Debugger/);
});
