// The examples of clone-serve(1), run as they are printed: by the shell, with a clone disk.img served at disk.sock in the
// directory where one is. (The one for QEMU is run by guest.test.ts.)
import { existsSync } from "node:fs";
import { chmod, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { holds, randomFile, readRange } from "../support/files.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { testWith } from "../support/needs.ts";
import { RecipeShell } from "../support/recipe-shell.ts";
import { recipe, recipesOf } from "../support/recipes.ts";
import { cloneOk } from "../support/run-clone.ts";
import { loopDevice, noLoopDevices, run, type Scratch, scratchDirectory } from "../support/scratch.ts";
import { type Server, startServe, stopServe } from "../support/serve.ts";

const PAGE = "clone-serve.1";
const MIB = 1024 * 1024;

/** A directory in which disk.img is a clone of base.img. */
async function place(makeBase: (path: string) => Promise<void>): Promise<Scratch> {
  const directory = await scratchDirectory();
  await makeBase(join(directory.path, "base.img"));
  await cloneOk(["create", "base.img", "disk.img"], { cwd: directory.path });
  return directory;
}

function served(cwd: string): Promise<Server> {
  return startServe({ clone: "disk.img", cwd, socket: "disk.sock", args: ["--rate", "4M"] });
}

/** Runs commands as they are printed, and ends what they have left behind. */
async function shell(cwd: string, ...lines: string[]): Promise<string> {
  await using recipes = new RecipeShell({ cwd });
  return await recipes.run(...lines);
}

/** Waits until `nbdfuse &` shows its file. */
const UNTIL_SHOWN = "i=0; until [ -e fuse/disk.img ]; do i=$((i + 1)); [ $i -lt 200 ]; sleep 0.05; done";

async function ext4WithFile(path: string): Promise<void> {
  await writeFile(path, "");
  await truncate(path, 32 * MIB);
  await run("mkfs.ext4", "-q", path);
  await using device = await loopDevice(path);
  await run(
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount "$1" /mnt && echo hello > /mnt/greeting && umount /mnt',
    "sh",
    device.path,
  );
}

describe("clone-serve(1)", () => {
  testWith(
    { programs: ["nbdinfo"] },
    "begins with an image that is used at once and stands alone in the end",
    async () => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      const bytes = await randomFile(join(cwd, "base.img"), 4 * MIB);
      const [serving = "", other = ""] = recipe(PAGE, "");
      await shell(cwd, serving, other, "wait $!");
      expect(await holds(join(cwd, "disk.img"), bytes)).toBe(true);
      expect(existsSync(join(cwd, "disk.img.clone"))).toBe(false);
    },
  );

  testWith({ programs: ["virt-xml-validate", "xmllint"] }, "has a disk that libvirt's schema accepts", async () => {
    await using directory = await scratchDirectory();
    const [disk = ""] = recipe(PAGE, "A virtual machine in libvirt");
    const domain = (devices: string) =>
      `<domain type="qemu"><name>x</name><memory>65536</memory><os><type>hvm</type></os><devices>${devices}</devices></domain>`;
    const file = join(directory.path, "domain.xml");
    await writeFile(file, domain(disk));
    await run("virt-xml-validate", file, "domain");
    // It is the schema that accepts it: with another protocol it does not.
    await writeFile(file, domain(disk.replace("nbd", "smoke-signals")));
    await expect(run("virt-xml-validate", file, "domain")).rejects.toThrow();
    expect(await run("xmllint", "--xpath", "string(//source/host/@socket)", file)).toMatch(/^\/.*disk\.sock$/m);
  });

  const fuse = { programs: ["nbdfuse", "fusermount3", "mkfs.ext4"], machine: noNbdLoop } as const;
  testWith(fuse, "shows the clone as a file and mounts it, through nbdfuse", async () => {
    await using directory = await place(ext4WithFile);
    const cwd = directory.path;
    const [show = "", mount = "", leave = ""] = recipe(PAGE, "A file, and a file system, of this machine");
    await using server = await served(cwd);
    const told = await shell(
      cwd,
      show,
      UNTIL_SHOWN,
      mount,
      "cat /mnt/greeting; echo changed > /mnt/greeting",
      leave,
      "wait",
    );
    expect(told).toBe("hello\n");
    const again = ["rmdir fuse", show, UNTIL_SHOWN, mount, "cat /mnt/greeting", leave, "wait"];
    expect(await shell(cwd, ...again)).toBe("changed\n");
    await stopServe(server);
  });

  const noKernel = noLoopDevices ?? (existsSync("/dev/nbd0") ? undefined : "this kernel has no NBD");
  testWith(
    { programs: ["nbd-client", "mkfs.ext4"], machine: noKernel },
    "mounts the clone as a block device of the kernel",
    async () => {
      await using directory = await place(ext4WithFile);
      const cwd = directory.path;
      const [mount = "", leave = ""] = recipe(PAGE, "A block device of this machine");
      await using server = await served(cwd);
      const device = mount.replace("modprobe nbd\n", "");
      expect(await shell(cwd, device, "cat /mnt/greeting; echo changed > /mnt/greeting", leave)).toBe("hello\n");
      expect(await shell(cwd, device, "cat /mnt/greeting", leave)).toBe("changed\n");
      await stopServe(server);
    },
  );

  testWith({ programs: ["systemd-analyze"] }, "has units that systemd finds no fault with", async () => {
    await using directory = await scratchDirectory();
    const [socket = "", service = ""] = recipe(PAGE, "A service of systemd");
    const program = join(directory.path, "clone");
    await writeFile(program, "#!/bin/sh\n");
    await chmod(program, 0o755);
    const units = { "clone@.socket": socket, "clone@.service": service.replace("/usr/bin/clone", program) };
    for (const [name, text] of Object.entries(units)) await writeFile(join(directory.path, name), text);
    // What it does not understand it only tells, and exits with 0.
    const verify = 'systemd-analyze verify --man=no "$1/clone@disk.socket" "$1/clone@disk.service" 2>&1';
    expect(await run("sh", "-c", verify, "sh", directory.path)).toBe("");
  });

  testWith({ programs: [] }, "has no example that is run nowhere", async () => {
    expect([...recipesOf(PAGE).keys()]).toEqual([
      "",
      "A virtual machine in QEMU",
      "A virtual machine in libvirt",
      "A file, and a file system, of this machine",
      "A block device of this machine",
      "A service of systemd",
    ]);
  });
});

describe("nbd-client", () => {
  testWith(
    { programs: ["nbd-client"] },
    "lists a clone's export and agrees on its size, without a device",
    async () => {
      await using directory = await place(async (path) => void (await randomFile(path, 4 * MIB)));
      const cwd = directory.path;
      await using server = await startServe({ clone: "disk.img", cwd, listen: "127.0.0.1:0", exportName: "disk" });
      const { uri = "" } = (await server.status()).server ?? {};
      const { port } = new URL(uri);
      expect(await run("sh", "-c", 'nbd-client -l 127.0.0.1 "$1" 2>&1', "sh", port)).toContain("disk");
      // It asks for the export, and only then sees that it was given no NBD device.
      const negotiation = 'nbd-client 127.0.0.1 "$1" -name disk -nofork /dev/null 2>&1 || true';
      expect(await run("sh", "-c", negotiation, "sh", port)).toContain("size = 4MB");
      await stopServe(server);
    },
  );
});

describe("systemd", () => {
  const programs = ["systemd-socket-activate", "nbdinfo", "nbdcopy"] as const;
  testWith({ programs }, "hands over a socket, and the first client starts the server", async () => {
    await using directory = await scratchDirectory();
    const cwd = directory.path;
    const bytes = await randomFile(join(cwd, "base.img"), 4 * MIB);
    await cloneOk(["create", "base.img", "disk.img"], { cwd });
    const uri = `nbd+unix:///?socket=${cwd}/act.sock`;
    const told = await shell(
      cwd,
      "systemd-socket-activate -l $PWD/act.sock clone serve disk.img > said 2> activated & server=$!",
      "i=0; until [ -e act.sock ]; do i=$((i + 1)); [ $i -lt 200 ]; sleep 0.05; done",
      `nbdinfo --size '${uri}'; nbdcopy '${uri}' out.img`,
      "kill $server; wait $server",
    );
    expect(told.trim()).toBe(String(4 * MIB));
    expect(await holds(join(cwd, "out.img"), bytes)).toBe(true);
    expect((await readRange(join(cwd, "activated"), 0, 4096)).toString()).not.toMatch(/clone: /);
  });
});
