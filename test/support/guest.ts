/**
 * A small Linux guest in QEMU: Debian's kernel, an initramfs of busybox with the modules it needs, and what disks the caller
 * gives it. It is emulated where there is no KVM.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, existsSync, readdirSync } from "node:fs";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import type { Program } from "./needs.ts";
import { run } from "./scratch.ts";

/** What it takes besides the kernel. */
export const GUEST_PROGRAMS = ["qemu-system-x86_64", "busybox", "cpio", "modprobe"] as const satisfies Program[];

/** Release of the newest installed kernel that has its modules; undefined where there is none (linux-image-amd64). */
export const guestKernel: string | undefined = releases().at(-1);

function releases(): string[] {
  if (!existsSync("/boot")) return [];
  return readdirSync("/boot")
    .filter((name) => name.startsWith("vmlinuz-"))
    .map((name) => name.slice("vmlinuz-".length))
    .filter((release) => existsSync(join("/lib/modules", release, "modules.dep")))
    .sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

/** What is in a guest. */
export interface GuestContent {
  /** A directory to build in. */
  place: string;
  /** Names of modules, which come with those they depend on. */
  modules: readonly string[];
  /** Files of modules that are no part of the kernel's package, loaded last. */
  ownModules?: readonly string[];
  /** Files of the initramfs, by name in `/`. */
  files?: Record<string, string>;
  /** busybox shell; a command that fails ends it. The guest is powered off afterwards. */
  script: string;
}

/** What to run in the guest. */
export interface GuestRequest extends GuestContent {
  /** Shell command that starts QEMU with its disks; it is given further options. */
  qemu: string;
  /** Where the command runs. */
  cwd: string;
  longestMs: number;
}

/** QEMU's options for a guest of that kernel, but for its disks and where its console goes (`-serial`). */
export function guestOptions(release: string, initramfs: string): string[] {
  return [
    ...["-accel", hasKvm() ? "kvm" : "tcg,thread=multi", "-cpu", "max", "-m", "256"],
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"],
    ...["-kernel", `/boot/vmlinuz-${release}`, "-initrd", initramfs],
    // On a busy machine an emulated timer is late, which the kernel takes for one that does not work.
    ...[
      "-append",
      "console=ttyS0 panic=-1 oops=panic quiet random.trust_cpu=on no_timer_check mitigations=off audit=0",
    ],
  ];
}

/** Not every /dev/kvm starts any guest: where this machine is itself a guest without nesting, one hangs before its first word. */
function hasKvm(): boolean {
  try {
    accessSync("/dev/kvm", constants.R_OK + constants.W_OK);
  } catch {
    return false;
  }
  return ["kvm_amd", "kvm_intel"].some((module) => existsSync(`/sys/module/${module}`));
}

/** Boots the guest and resolves to what its console showed. Rejects where the script did not come to its end. */
export async function runGuest(request: GuestRequest): Promise<string> {
  if (guestKernel === undefined) throw new Error("there is no kernel to boot: see test/setup.sh");
  const initramfs = await makeInitramfs(request, guestKernel);
  const qemu = spawn(
    "sh",
    ["-c", `exec ${request.qemu.trim()} "$@"`, "sh", ...guestOptions(guestKernel, initramfs), "-serial", "stdio"],
    { cwd: request.cwd, stdio: ["ignore", "pipe", "pipe"] },
  );
  let shown = "";
  for (const stream of [qemu.stdout, qemu.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      shown += text;
    });
  }
  const hang = setTimeout(() => qemu.kill("SIGKILL"), request.longestMs);
  const [code] = await once(qemu, "close");
  clearTimeout(hang);
  const ending = new RegExp(`^${DONE}\\r?$`, "m");
  if (code !== 0 || !ending.test(shown)) throw new Error(`the guest failed (qemu exited with ${code}):\n${shown}`);
  return shown.replaceAll("\r", "");
}

const DONE = "guest: all done";

/** Makes the initramfs of a guest of that kernel, and resolves to its path in `place`. */
export async function makeInitramfs(content: GuestContent, release: string): Promise<string> {
  const { place, modules, ownModules = [], files = {}, script } = content;
  const root = join(place, "initramfs");
  for (const directory of ["bin", "dev", "proc", "sys", "mnt", "modules"]) {
    await mkdir(join(root, directory), { recursive: true });
  }
  await copyFile("/bin/busybox", join(root, "bin/busybox"));
  const loaded = await copyModules(modules, release, join(root, "modules"));
  for (const file of ownModules) {
    await copyFile(file, join(root, "modules", basename(file)));
    loaded.push(basename(file));
  }
  for (const [name, text] of Object.entries(files)) await writeFile(join(root, name), text);
  await writeFile(join(root, "script"), `set -eu\n${script}\n`);
  await writeFile(join(root, "init"), init(loaded), { mode: 0o755 });
  const archive = join(place, "initramfs.cpio");
  await run("sh", "-c", 'cd "$1" && find . | cpio --quiet -o -H newc > "$2"', "sh", root, archive);
  return archive;
}

/** Copies modules and what they need, uncompressed, and resolves to their names in the order in which to load them. */
async function copyModules(names: readonly string[], release: string, target: string): Promise<string[]> {
  const loaded: string[] = [];
  for (const name of names) {
    const told = await run("modprobe", "--show-depends", "--set-version", release, name);
    for (const [, path = ""] of told.matchAll(/^insmod (\S+)/gm)) {
      const file = basename(path).replace(/\.xz$/, "");
      if (loaded.includes(file)) continue;
      loaded.push(file);
      if (path.endsWith(".xz")) await run("sh", "-c", 'xz -dc "$1" > "$2"', "sh", path, join(target, file));
      else await copyFile(path, join(target, file));
    }
  }
  return loaded;
}

/** A module that this processor cannot use (crc32c-intel) is not missed: another does its work, or mounting fails. */
function init(modules: readonly string[]): string {
  return `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in ${modules.join(" ")}; do insmod /modules/$module || echo "guest: no $module"; done
if sh /script; then echo '${DONE}'; else echo 'guest: the script failed'; fi
poweroff -f
`;
}
