/** What qemu-nbd says where it cannot open something, and what the user can do about it. */
import { basename } from "node:path";
import type { ChildWords } from "../device/child-server.ts";

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

/**
 * What the lines mean that a program has printed. Of qemu-nbd's, which repeat what it was told to open, the rest is the reason.
 * A command's own are left as they are.
 */
export function explainWords(lines: readonly string[]): ChildWords {
  const said = lines.join("\n");
  const reason = lines.findLast((line) => OPENING.test(line))?.replace(OPENING, "");
  return { ...(reason === undefined ? {} : { reason }), hint: hintFor(said) };
}

/** How qemu-nbd begins where it cannot open something; the name may hold anything, the reason no such quote and colon. */
const OPENING = /^qemu-nbd: (?:Failed to blk_new_open|Failed to open) '.*': /;

function hintFor(said: string): string | undefined {
  const driver = /Unknown (?:protocol|driver) '([^']+)'/.exec(said)?.[1];
  const fedora = driver === undefined ? undefined : DRIVER_PACKAGES[driver];
  if (fedora !== undefined) return `Install the package qemu-block-extra (Debian, Ubuntu) or ${fedora} (Fedora, RHEL).`;
  return /Failed to get (?:shared )?"[^"]+" lock/.test(said) ? LOCKED_HINT : undefined;
}
