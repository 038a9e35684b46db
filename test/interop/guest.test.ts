// A Linux guest starts from its clone while hydration runs: it finds its files, changes them, writes new ones and powers off.
// What it has written is then on the destination, together with all it has not touched.
import { mkdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { hashesBelow, hashOf } from "../support/file-hashes.ts";
import { GUEST_PROGRAMS, guestKernel, runGuest } from "../support/guest.ts";
import { mountedDevice } from "../support/nbd-loop.ts";
import { testWith } from "../support/needs.ts";
import { contentBytes } from "../support/random.ts";
import { recipe } from "../support/recipes.ts";
import { cloneOk } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, run, scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 128 * MIB;
const LONGEST_MS = 150_000;

/** What the guest does on the clone. It reads every file that was there, and what it wrote after the cache is dropped. */
const SCRIPT = `
mount -t ext4 -o discard /dev/vda /mnt
cd /mnt
sha256sum -c -s /checksums
echo "guest: the files are right"
dd if=/dev/urandom of=new bs=64k count=64 2>/dev/null
dd if=/dev/urandom of=d1/f1 bs=1000 seek=7 count=3 conv=notrunc,fsync 2>/dev/null
rm doomed
mkdir made
i=0
while [ $i -lt 40 ]; do dd if=/dev/urandom of=made/m$i bs=3001 count=$i 2>/dev/null; i=$((i + 1)); done
mv d2/f2 moved
sync
find . -type f -exec sha256sum {} + > /before
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c -s /before
sed 's/^/written: /' /before
cd /
umount /mnt
`;

describe("a Linux guest", () => {
  const programs = [...GUEST_PROGRAMS, "mkfs.ext4", "e2fsck", "losetup"] as const;
  const machine = noLoopDevices;

  testWith(
    { programs, machine },
    "starts from a clone that is hydrating, and what it writes is on the destination",
    async () => {
      expect(guestKernel, "no kernel of linux-image-amd64: see test/setup.sh").toBeDefined();
      await using place = await scratchDirectory();
      const cwd = place.path;
      const image = join(cwd, "disk.img");
      await writeFile(image, "");
      await truncate(image, SIZE);
      await run("mkfs.ext4", "-q", image);
      let original: Map<string, string>;
      {
        await using device = await loopDevice(image);
        await using mounted = await mountedDevice(device.path, "ext4");
        original = await fillWithFiles(mounted.path);
      }
      await cloneOk(["create", "disk.img", "copy.img"], { cwd });

      let shown: string;
      {
        // Hydration takes about as long as the guest.
        await using server = await startServe({ clone: "copy.img", cwd, socket: "disk.sock", args: ["--rate", "6M"] });
        const checksums = [...original].map(([name, hash]) => `${hash}  ${name}\n`).join("");
        shown = await runGuest({
          place: cwd,
          modules: ["virtio_pci", "virtio_blk", "ext4"],
          files: { checksums },
          script: SCRIPT,
          qemu: recipe("clone-serve.1", "A virtual machine in QEMU").join("\n"),
          cwd,
          longestMs: LONGEST_MS,
        });
        await server.tune("--rate", "max");
        await server.hydrated();
        await stopServe(server);
      }
      const written = new Map(
        [...shown.matchAll(/^written: (\w{64}) {2}\.\/(.*)$/gm)].map(([, hash = "", name = ""]) => [name, hash]),
      );
      expect(written.size).toBe(original.size - 1 + 41);

      await cloneOk(["finalize", "copy.img"], { cwd });
      await run("e2fsck", "-f", "-n", join(cwd, "copy.img"));
      await using device = await loopDevice(join(cwd, "copy.img"), { readOnly: true });
      await using mounted = await mountedDevice(device.path, "ext4", "ro");
      expect(await hashesBelow(mounted.path)).toEqual(written);
      const untouched = [...original.keys()].filter((name) => !["doomed", "d1/f1", "d2/f2"].includes(name));
      for (const name of untouched) expect(hashOf(await readFile(join(mounted.path, name)))).toBe(original.get(name));
    },
    LONGEST_MS + 60_000,
  );
});

/** Some 40 MiB of files, whose hashes it resolves to. */
async function fillWithFiles(root: string): Promise<Map<string, string>> {
  for (let index = 0; index < 60; index++) {
    const directory = join(root, `d${index % 5}`);
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, `f${index}`), contentBytes((index + 1) * 5 * KIB + index));
  }
  await writeFile(join(root, "doomed"), contentBytes(12 * MIB));
  await writeFile(join(root, "large"), contentBytes(16 * MIB));
  return await hashesBelow(root);
}
