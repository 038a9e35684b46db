/**
 * What stands where a clone's metadata would be. Only what is without doubt something else counts as no clone: metadata that
 * cannot be read, or is damaged, may be all that tells which of its destination's regions are there.
 */
import { DeviceError, MetadataError, UsageError } from "../base/errors.ts";
import { FileDevice } from "../device/file-device.ts";
import { hasSuperblockMagic, probeSuperblock, type SuperblockVerdict } from "../metadata/superblock.ts";
import { BLOCK_SIZE } from "../persistent-data/checksum.ts";

const WAYS_OUT =
  "`clone check` says what is wrong with it, `clone repair` makes new metadata of the rest, `clone delete` gives that clone up.";
const UNREADABLE =
  "Whoever can read it finds out by `clone status`, or `clone repair`; where no clone is known that it could belong to, remove it.";

/** How a path says that nothing can stand there. */
const NOTHING_THERE: readonly (string | undefined)[] = ["ENOENT", "ENOTDIR", "ENAMETOOLONG"];

/**
 * Whether a path names something that begins like clone metadata, sound or not. What is not there does not, nor what is
 * neither a file nor a block device. @throws {DeviceError} where it cannot be read
 */
export async function holdsMetadata(path: string): Promise<boolean> {
  await using device = await openIfThere(path);
  if (device === undefined || device.size < BLOCK_SIZE) return false;
  const head = new Uint8Array(BLOCK_SIZE);
  await device.read(0, head);
  return hasSuperblockMagic(head);
}

/**
 * What a file or block device is, as metadata; undefined where there is none.
 * @throws {DeviceError} where that cannot be known
 */
export async function probeMetadata(path: string): Promise<SuperblockVerdict | undefined> {
  await using device = await openIfThere(path);
  return device === undefined ? undefined : await probeSuperblock(device);
}

/** Whether it is metadata, or may be what is left of some. Zeros are what many a disk image is at its beginning. */
export function mayBeMetadata(found: SuperblockVerdict | undefined): found is SuperblockVerdict {
  if (found === undefined || found.verdict === "foreign") return false;
  if (found.verdict === "truncated") return found.left !== "zeros";
  return found.verdict !== "unformatted" || found.orphans;
}

/**
 * Whether metadata stands at a path that can be asked how far its clone is.
 * @param refusal what cannot be done where that is not known, and why, up to the full stop
 * @throws {MetadataError} where it is damaged
 * @throws {DeviceError} where it cannot be read
 */
export async function holdsSoundMetadata(path: string, refusal: string): Promise<boolean> {
  const found = await probeMetadata(path).catch((error: unknown) => {
    if (!(error instanceof DeviceError)) throw error;
    throw new DeviceError(`${refusal}. ${error.message}`, { cause: error, errno: error.errno, hint: UNREADABLE });
  });
  if (!mayBeMetadata(found)) return false;
  if (found.verdict !== "valid") throw unknownClone(found, refusal);
  return true;
}

/** The error for what may be an unfinished clone that nobody can ask how far it is. */
export function unknownClone(found: Exclude<SuperblockVerdict, { verdict: "valid" }>, refusal: string): MetadataError {
  return new MetadataError(`${refusal}. ${found.error.message}`, { cause: found.error, hint: wayOut(found) });
}

function wayOut({ verdict, error }: Exclude<SuperblockVerdict, { verdict: "valid" }>): string {
  return verdict === "unformatted" || error.hint === undefined ? WAYS_OUT : error.hint;
}

/** Opens what stands at a path, or undefined where nothing does that could be metadata. @throws {DeviceError} */
async function openIfThere(path: string): Promise<FileDevice | undefined> {
  try {
    return await FileDevice.open(path, { access: "read-only", direct: "off" });
  } catch (error) {
    if (error instanceof UsageError) return undefined; // a directory, a pipe
    if (error instanceof DeviceError && NOTHING_THERE.includes(error.errno)) return undefined;
    throw error;
  }
}
