// The examples of clone-kernel(7), run as they are printed, in a guest that has it all: this program, dmsetup and the module.
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { recipe, recipesOf } from "../support/recipes.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { KernelGuest } from "./kernel-guest.ts";
import { kernelCampaign } from "./options.ts";
import { upToFeatures } from "./relayed-clone.ts";

const PAGE = "clone-kernel.7";
const PROGRAM = fileURLToPath(new URL("../../bin/clone.js", import.meta.url));
const { only, report } = kernelCampaign();

const place = await scratchDirectory();
let guest: KernelGuest;

beforeAll(async () => {
  if (only !== undefined) return;
  await mkdir(join(place.path, "guest"));
  guest = await KernelGuest.boot(join(place.path, "guest"));
  report({ "guest boots": 1 });
});

afterAll(async () => {
  await guest?.[Symbol.asyncDispose]();
  await place[Symbol.asyncDispose]();
});

/** Runs commands in a new directory, in which old.img is; expected.img is what the clone must hold. */
async function shell(...lines: string[]): Promise<string> {
  let violations = 1;
  try {
    const told = await guest.run(`
clone() { ${process.execPath} ${PROGRAM} "$@"; }
place=$(mktemp -d)
cd "$place"
dd if=/dev/urandom of=old.img bs=64K count=32 status=none
cp old.img expected.img
${lines.join("\n")}
cd /
rm -r "$place"`);
    expect(await guest.kernelLog()).toEqual([]);
    violations = 0;
    return told;
  } finally {
    report({ "round trips": 1, states: 1, violations });
  }
}

/** Writes to the clone and to what it is held against. */
function written(seek: number): string {
  return `dd if=/dev/urandom of=written bs=3K count=5 status=none
dd if=written of=expected.img bs=512 seek=${seek} conv=notrunc status=none
dd if=written of=/dev/mapper/disk bs=512 seek=${seek} conv=notrunc,fsync status=none`;
}

const UNTIL_HYDRATED = `
while set -- $(dmsetup status disk); [ "\${7%/*}" != "\${7#*/}" ]; do sleep 0.1; done`;
const SAME = "cmp /dev/mapper/disk expected.img";

describe.skipIf(only !== undefined)("clone-kernel(7)", () => {
  test("hands a clone to the kernel, which completes it", async () => {
    const [create = ""] = recipe(PAGE, "A clone for the kernel from the start");
    const [open = "", enable = ""] = recipe(PAGE, "To the kernel");
    const [complete = "", clear = ""] = recipe(PAGE, "Completion in the kernel");
    const told = await shell(
      create,
      "clone hydrate new.img.clone --limit 512K -q",
      open,
      SAME,
      written(100),
      enable,
      UNTIL_HYDRATED,
      SAME,
      complete,
      "dmsetup table disk",
      SAME,
      clear,
      "dmsetup remove disk",
      'losetup --detach "$destination"',
      "cmp new.img expected.img",
    );
    expect(told).toMatch(/^\/.*new\.img\.clone: clean, 8 of 32 regions hydrated$/m);
    expect(told).toMatch(
      /^0 4096 clone 8 \d+\/\d+ 128 \d+\/32 \d+ 0 4 hydration_threshold 1 hydration_batch_size 1 rw$/m,
    );
    expect(told).toMatch(/^0 4096 linear 7:\d+ 0$/m);
  });

  test("takes a clone back from the kernel, which has written to it", async () => {
    const [create = ""] = recipe(PAGE, "A clone for the kernel from the start");
    const [open = ""] = recipe(PAGE, "To the kernel");
    const [back = ""] = recipe(PAGE, "From the kernel");
    const told = await shell(create, open, written(700), written(3000), back, "cmp new.img expected.img", "ls");
    expect(told).toMatch(/clean, [1-9]\d* of 32 regions hydrated$/m);
    expect(told).not.toContain("new.img.clone\n");
  });

  test("takes over a clone of the kernel's making", async () => {
    const [goOn = ""] = recipe(PAGE, "Metadata that the kernel has made");
    await shell(
      "truncate --size 2M new.img; truncate --size 1M meta.img",
      "source=$(losetup --find --show --read-only old.img)",
      "destination=$(losetup --find --show new.img)",
      "metadata=$(losetup --find --show meta.img)",
      'dmsetup create disk --table "0 $(blockdev --getsz "$source") clone $metadata $destination $source 8"',
      written(1234),
      "dmsetup remove disk",
      'losetup --detach "$metadata"; losetup --detach "$destination"; losetup --detach "$source"',
      goOn,
      "cmp new.img expected.img",
    );
  });

  test("completes a clone with its metadata on a block device, of which `clone status` says what the kernel says", async () => {
    const [, enable = ""] = recipe(PAGE, "To the kernel");
    const [complete = ""] = recipe(PAGE, "Completion in the kernel");
    const told = await shell(
      "truncate --size 2M meta.img",
      "metadata=$(losetup --find --show meta.img)",
      'clone create old.img new.img --metadata "$metadata" -q',
      "source=$(losetup --find --show --read-only old.img)",
      "destination=$(losetup --find --show new.img)",
      'dmsetup create disk --table "0 4096 clone $metadata $destination $source 128 1 no_hydration"',
      // Read while the kernel has it open, and again when the kernel has written to it.
      'clone status "$metadata" --dm',
      enable,
      UNTIL_HYDRATED,
      "dmsetup message disk 0 disable_hydration; dmsetup status disk",
      'clone status "$metadata" --dm',
      complete.replace("new.img.clone", '"$metadata"'),
      SAME,
      "dmsetup remove disk",
      'losetup --detach "$metadata"; losetup --detach "$destination"; losetup --detach "$source"',
    );
    const [before, , kernel, ours] = told.match(/^0 4096 clone .*$/gm) ?? [];
    expect(before).toMatch(/ 0\/32 0 1 no_hydration /);
    expect(kernel).toMatch(/ 32\/32 0 /);
    expect(upToFeatures(ours ?? "")).toBe(upToFeatures(kernel ?? ""));
  });

  test("has no example that is run nowhere", () => {
    expect([...recipesOf(PAGE).keys()]).toEqual([
      "",
      "To the kernel",
      "Completion in the kernel",
      "From the kernel",
      "Metadata that the kernel has made",
      "A clone for the kernel from the start",
    ]);
    expect(recipe(PAGE, "")).toEqual([]);
  });
});
