/**
 * A new file that gives nobody more than another file or block device gives. Its owner is whoever runs the program, and could
 * read the other one; its group need not be the other one's, and then whoever is in it counts as one of the rest.
 */
import { statDescriptor } from "../device/file-identity.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";

/** What stat(2) tells of a file. */
export interface Permissions {
  mode: number;
  gid: number;
}

/** Without these it could not be worked with. */
const OWNER = 0o600;
/** Nothing is executed. */
const EVERYBODY = 0o666;

/**
 * Begins the file that will be `path`, empty; umask takes its part besides. Access control lists are not looked at.
 * @throws {DeviceError} where none can be made there
 */
export async function createLike(path: string, model: Permissions): Promise<UnnamedFile> {
  const file = await UnnamedFile.create(path, { mode: modeFor(model, true) });
  try {
    const { gid } = await statDescriptor(file.device.fd, { bigint: true });
    if (Number(gid) === model.gid) return file;
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
  // Only now is it known. Whoever has opened the first one meanwhile, has one that stays empty.
  await file[Symbol.asyncDispose]();
  return await UnnamedFile.create(path, { mode: modeFor(model, false) });
}

/** Permissions, no offset or size. Also those of the rest lack what the other file's group lacks, once that is among them. */
function modeFor({ mode }: Permissions, sameGroup: boolean): number {
  if (sameGroup) return (mode & EVERYBODY) | OWNER;
  const rest = mode & (mode >> 3) & 0o006;
  return OWNER | (rest << 3) | rest;
}

/** The permissions of what is open. @throws {SyscallError} */
export async function permissionsOf({ fd }: { fd: number }): Promise<Permissions> {
  const { mode, gid } = await statDescriptor(fd, { bigint: true });
  return { mode: Number(mode), gid: Number(gid) };
}
