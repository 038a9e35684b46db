/** Opens and locks the metadata that a name means, without reading it. */
import { stat } from "node:fs/promises";
import { CloneError, DeviceError, errnoOf } from "../base/errors.ts";
import { FileDevice } from "../device/file-device.ts";
import { isSameFile, statDescriptor } from "../device/file-identity.ts";
import { refuseClaimed, refuseInUse } from "../device/in-use.ts";
import { FADV_DONTNEED, fadvise } from "../device/libc.ts";
import { acquireLock, type Lock } from "../device/lock.ts";
import { parsePath } from "./location.ts";
import { exists, findMetadata, metadataName } from "./metadata-file.ts";

/**
 * `exclusive` locks it to change it; `quiescent` reads it and keeps writers away; `any` reads it as it is. `beside-the-kernel`
 * keeps our writers away, but not the kernel's clone, which takes no locks: for what is told of a state that lasts.
 */
export type MetadataAccess = "exclusive" | "quiescent" | "beside-the-kernel" | "any";

/** Open metadata. Disposing of it closes it and lets the lock go. */
export interface OpenedMetadata extends AsyncDisposable {
  device: FileDevice;
  /** The destination, where it was that which was named. */
  destination: string | undefined;
}

/** A path that was replaced while it was being opened is opened again this often. */
const ATTEMPTS = 5;

/**
 * Opens the metadata that a name means: its own path, or that of the destination it stands beside.
 * @throws {CloneError} where there is none
 * @throws {BusyError} where another process uses it
 * @throws {DeviceError} where it cannot be opened
 */
export async function openMetadata(name: string, access: MetadataAccess): Promise<OpenedMetadata> {
  const named = parsePath(name);
  for (let attempt = 1; ; attempt++) {
    const { path, destination } = await findMetadata(named);
    if (!(await exists(path))) {
      throw new CloneError(
        "failed",
        `Cannot open the clone "${name}": there is neither that file nor "${metadataName(name)}"`,
      );
    }
    const opened = await openAndLock(path, access);
    // Whoever removed it had it locked: a lock taken only now may be on a file that has no name any more.
    if (access === "any" || (await isStillThere(opened.device))) return { ...opened, destination };
    await opened[Symbol.asyncDispose]();
    if (attempt === ATTEMPTS) {
      throw new CloneError("failed", `Cannot open the clone "${name}": "${path}" is replaced again and again`);
    }
  }
}

/** Whether the path that a device was opened by still names it. @throws {DeviceError} */
export async function isStillThere(device: FileDevice): Promise<boolean> {
  const named = await stat(device.path, { bigint: true }).catch((error: unknown) => {
    const errno = errnoOf(error);
    if (errno === "ENOENT") return undefined;
    if (errno === undefined) throw error;
    throw new DeviceError(`Cannot look at "${device.path}": ${errno}`, { errno, cause: error });
  });
  return named !== undefined && isSameFile(named, await statDescriptor(device.fd, { bigint: true }));
}

/**
 * Has what is in memory of a block device read anew. The kernel's clone writes past the page cache, and as long as anybody has the
 * device open, what was read through it before stays there: bits of long ago.
 * @throws {DeviceError}
 */
async function forgetCached({ fd, name, identity }: FileDevice): Promise<void> {
  if (identity.rdev === undefined) return;
  await fadvise(fd, 0, 0, FADV_DONTNEED).catch((cause: unknown) => {
    const errno = errnoOf(cause);
    throw new DeviceError(`Cannot read "${name}" anew: ${errno}`, { errno, cause });
  });
}

async function openAndLock(path: string, access: MetadataAccess): Promise<AsyncDisposable & { device: FileDevice }> {
  const writes = access === "exclusive";
  const device = await FileDevice.open(path, { access: writes ? "read-write" : "read-only", direct: "off" });
  let lock: Lock | undefined;
  const close = async (): Promise<void> => {
    lock?.release();
    await device[Symbol.asyncDispose]();
  };
  try {
    if (access !== "any") {
      if (access !== "beside-the-kernel") {
        await refuseInUse(device, writes ? "write" : "read");
        if (!writes) await refuseClaimed(device);
      }
      lock = await acquireLock(device, writes ? "exclusive" : "shared");
    }
    await forgetCached(device);
    return { device, [Symbol.asyncDispose]: close };
  } catch (error) {
    await close();
    throw error;
  }
}
