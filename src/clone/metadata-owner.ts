/**
 * Whose word metadata is. It says what is read and what is overwritten, so whoever can write it could have somebody else copy a
 * file that only that one can read, or write over one that only that one can write. So it says so to its owner alone, and to
 * everybody where it is root's; to anybody else the devices have to be named on the command line.
 */
import type { BigIntStats } from "node:fs";
import { realpath } from "node:fs/promises";
import { CloneError, errnoOf } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";
import { statDescriptor } from "../device/file-identity.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";

/** Who runs the program. */
export interface Runner {
  /** The effective user. */
  uid: number;
  /** Who has become root by sudo(8), as its variable SUDO_UID tells: it is they who have named the metadata. */
  sudoUid: string | undefined;
}

/** Permission of everybody to write. */
const WRITABLE_BY_ALL = 0o002;

/**
 * @param role what the metadata is to say where it is
 * @throws {CloneError} where the metadata belongs to somebody else than the user or root
 */
export async function refuseStrangersWord(
  device: Pick<FileDevice, "fd" | "path">,
  role: "source" | "destination",
): Promise<void> {
  const stranger = await strangerOwning(device);
  if (stranger === undefined) return;
  throw new CloneError(
    "failed",
    `Cannot open the ${role}: only "${device.path}" says where it is, and that belongs to another user (uid ${stranger})`,
    { hint: `Its owner could have named any file of yours: see \`clone status\`, and name it with --${role}.` },
  );
}

/**
 * The owner of metadata that is neither the user's nor root's; undefined of any other.
 * @param statOfOurs stat(2) of what we make beside it
 * @throws {SyscallError}
 */
export async function strangerOwning(
  { fd, path }: Pick<FileDevice, "fd" | "path">,
  runner: Runner = thisRunner(),
  statOfOurs: (path: string) => Promise<Owned> = makeBeside,
): Promise<number | undefined> {
  const stats = await statDescriptor(fd, { bigint: true });
  const owner = Number(stats.uid);
  if (believedOwners(runner).includes(owner)) return undefined;
  return stats.isFile() && (await looksLikeOurs(stats, () => statOfOurs(path))) ? undefined : owner;
}

/** Of stat(2). */
type Owned = Pick<BigIntStats, "uid" | "dev">;

/**
 * Whether a file that we make beside it gets the same owner: where a server or the mount gives ours another one (NFS with
 * root_squash, CIFS and FAT with uid=, mounts that map owners), what is ours looks like that. On the same file system alone: the
 * directory may have been exchanged.
 */
async function looksLikeOurs(stats: Owned, statOfOurs: () => Promise<Owned>): Promise<boolean> {
  try {
    const ours = await statOfOurs();
    return ours.dev === stats.dev && ours.uid === stats.uid;
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return false; // we can make nothing there, so nothing there is ours
  }
}

async function makeBeside(path: string): Promise<Owned> {
  await using file = await UnnamedFile.create(await realpath(path), { mode: 0o600 });
  return await statDescriptor(file.device.fd, { bigint: true });
}

/** What should be known of metadata that everybody may write to, a sentence; undefined of any other. @throws {SyscallError} */
export async function warningOfWriters({ fd, path, kind }: FileDevice): Promise<string | undefined> {
  if (kind === "block") return undefined;
  const { mode } = await statDescriptor(fd, { bigint: true });
  const isOpen = (Number(mode) & WRITABLE_BY_ALL) !== 0; // permissions, no offset or size
  return isOpen ? `Every user of this machine may write to "${path}", and so name what is copied where` : undefined;
}

function believedOwners({ uid, sudoUid }: Runner): number[] {
  if (uid !== 0 || sudoUid === undefined || !/^\d+$/.test(sudoUid)) return [0, uid];
  return [0, Number(sudoUid)];
}

function thisRunner(): Runner {
  return { uid: process.geteuid?.() ?? 0, sudoUid: process.env.SUDO_UID };
}
