/** What qemu-nbd says where it cannot open something, and what the user can do about it. */
import { basename } from "node:path";

/** Packages of programs, as Debian and its kin, and as Fedora and its kin name them. */
const PACKAGES: Readonly<Record<string, { debian: string; fedora: string }>> = {
  "qemu-nbd": { debian: "qemu-utils", fedora: "qemu-img" },
  nbdkit: { debian: "nbdkit", fedora: "nbdkit" },
};

/** Drivers that come as packages of their own. */
const DRIVER_PACKAGES: Readonly<Record<string, string>> = {
  rbd: "qemu-block-rbd",
  ssh: "qemu-block-ssh",
  iscsi: "qemu-block-iscsi",
  iser: "qemu-block-iscsi",
  nfs: "qemu-block-nfs",
  gluster: "qemu-block-gluster",
  "gluster+tcp": "qemu-block-gluster",
  "gluster+unix": "qemu-block-gluster",
  "gluster+rdma": "qemu-block-gluster",
  http: "qemu-block-curl",
  https: "qemu-block-curl",
  ftp: "qemu-block-curl",
  ftps: "qemu-block-curl",
  dmg: "qemu-block-dmg",
};

/** Of an image that is open for writing elsewhere. */
export const LOCKED_HINT =
  "Another process writes to it, as a virtual machine does that runs. Clone it when that has ended.";

/** Where a program comes from that is missing; undefined of one that is nobody's but the user's. */
export function explainMissing(program: string): string | undefined {
  const found = PACKAGES[basename(program)];
  return found && `Install the package ${found.debian} (Debian, Ubuntu) or ${found.fedora} (Fedora, RHEL).`;
}

/** What the user can do about what qemu-nbd said, or undefined. */
export function explainWords(lines: readonly string[]): string | undefined {
  const said = lines.join("\n");
  const driver = /Unknown (?:protocol|driver) '([^']+)'/.exec(said)?.[1];
  if (driver !== undefined) {
    const fedora = DRIVER_PACKAGES[driver];
    return fedora && `Install the package qemu-block-extra (Debian, Ubuntu) or ${fedora} (Fedora, RHEL).`;
  }
  if (/Failed to get (?:shared )?"[^"]+" lock/.test(said)) {
    return LOCKED_HINT;
  }
  return undefined;
}
