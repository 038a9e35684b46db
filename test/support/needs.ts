/** Tests that meet other programs, and what becomes of them where one is missing. */
import { expect, test } from "vitest";
import { hasProgram, withReason } from "./scratch.ts";

/** The Debian package that each program comes in; `test/setup.sh` installs them all. */
const PACKAGES = {
  busybox: "busybox-static",
  cpio: "cpio",
  curl: "curl",
  e2fsck: "e2fsprogs",
  fio: "fio",
  fusermount3: "fuse3",
  losetup: "mount",
  "mkfs.ext4": "e2fsprogs",
  "mkfs.xfs": "xfsprogs",
  modprobe: "kmod",
  nbdcopy: "libnbd-bin",
  nbdfuse: "libnbd-bin",
  nbdinfo: "libnbd-bin",
  nbdkit: "nbdkit",
  "nbd-server": "nbd-server",
  nginx: "nginx-light",
  "nbd-client": "nbd-client",
  openssl: "openssl",
  psktool: "gnutls-bin",
  "qemu-img": "qemu-utils",
  "qemu-io": "qemu-utils",
  "qemu-nbd": "qemu-utils",
  "qemu-storage-daemon": "qemu-system-common",
  "qemu-system-x86_64": "qemu-system-x86",
  strace: "strace",
  "systemd-analyze": "systemd",
  "systemd-socket-activate": "systemd",
  "virt-xml-validate": "libvirt-clients",
  xfs_repair: "xfsprogs",
  xmllint: "libxml2-utils",
  xz: "xz-utils",
} as const satisfies Record<string, string>;

/** A program that tests may use. */
export type Program = keyof typeof PACKAGES;

/** What a test needs besides Node. */
export interface Needs {
  programs: readonly Program[];
  /** Why the machine itself cannot do it (no root, no loop devices); undefined where it can. Excused everywhere. */
  machine?: string | undefined;
}

/** Which programs are missing, or undefined where none is. */
export function missingPrograms(programs: readonly Program[]): string | undefined {
  const missing = programs.filter((program) => !hasProgram(program));
  if (missing.length === 0) return undefined;
  return `needs ${missing.map((program) => `${program} of the Debian package ${PACKAGES[program]}`).join(", ")}`;
}

/**
 * A test with other programs. Where one is missing it is skipped, and its name tells why; with `CI` set in the
 * environment it fails instead, so that a set-up that forgot a package is not taken for a success.
 */
export function testWith(needs: Needs, name: string, body: () => Promise<void>, timeoutMs?: number): void {
  const missing = missingPrograms(needs.programs);
  if (missing !== undefined && isCi()) {
    test(name, () => expect.fail(`${missing}: see test/setup.sh`));
    return;
  }
  const reason = needs.machine ?? missing;
  test.skipIf(reason !== undefined)(withReason(name, reason), body, timeoutMs);
}

function isCi(): boolean {
  const { CI = "" } = process.env;
  return CI !== "" && CI !== "0" && CI !== "false";
}
