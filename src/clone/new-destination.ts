/** The destination of a clone that is being created: opened or made, and locked from the first moment it can be seen. */
import { BusyError, UsageError } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";
import { acquireLock, type Lock } from "../device/lock.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";
import type { Location } from "./location.ts";
import { exists, removeIfThere } from "./metadata-file.ts";
import { openDestination } from "./open-devices.ts";
import { isStillThere } from "./open-metadata.ts";

/** An open, locked destination. Disposing of it closes it, and removes it where it was made and is not to be kept. */
export class NewDestination implements AsyncDisposable {
  readonly device: FileDevice;
  /** Whether it was made just now: then it is empty, whatever the file system can tell of holes. */
  readonly isNew: boolean;
  readonly #lock: Lock;
  /** What holds the device. */
  readonly #owner: AsyncDisposable;
  #kept = false;

  private constructor(device: FileDevice, parts: { isNew: boolean; lock: Lock; owner: AsyncDisposable }) {
    this.device = device;
    this.isNew = parts.isNew;
    this.#lock = parts.lock;
    this.#owner = parts.owner;
  }

  /**
   * Opens the destination, or makes it: a sparse file of `size` bytes, its name durable.
   * @throws {BusyError} where another process uses it
   * @throws {DeviceError} where it can be neither opened nor made
   */
  static async open(location: Location, size: number): Promise<NewDestination> {
    if (await exists(location.path)) {
      const device = await openDestination(location);
      return await owning(device, async () => {
        const lock = await acquireLock(device);
        return await owning(lock, async () => {
          if (await isStillThere(device)) return new NewDestination(device, { isNew: false, lock, owner: device });
          throw new BusyError(`Cannot clone to "${location.path}": somebody else has just removed it`);
        });
      });
    }
    const file = await UnnamedFile.create(location.path);
    return await owning(file, async () => {
      await file.device.resize(size);
      await file.device.flush();
      // Before it has a name, so that whoever else opens it finds it locked, and nobody's work is removed with ours.
      const lock = await acquireLock(file.device);
      return await owning(lock, async () => {
        if (await file.publish()) return new NewDestination(file.device, { isNew: true, lock, owner: file });
        if (await exists(location.path)) {
          throw new BusyError(`Cannot create "${location.path}": somebody else has just done so`);
        }
        throw new UsageError(`Cannot create "${location.path}": it is a symbolic link to nothing`);
      });
    });
  }

  /** It stays, whatever comes. */
  keep(): void {
    this.#kept = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.isNew && !this.#kept && (await isStillThere(this.device))) await removeIfThere(this.device.path);
    this.#lock.release();
    await this.#owner[Symbol.asyncDispose]();
  }
}

/** Disposes of `owner` where `use` fails. */
async function owning<T>(owner: AsyncDisposable, use: () => Promise<T>): Promise<T> {
  try {
    return await use();
  } catch (error) {
    await owner[Symbol.asyncDispose]();
    throw error;
  }
}
