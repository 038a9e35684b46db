/** The destination of a clone that is being created: opened or made, and locked from the first moment it can be seen. */
import { BusyError, UsageError } from "../base/errors.ts";
import { acquireLock, type Lock } from "../device/lock.ts";
import type { RemoteOptions } from "../device/remote-device.ts";
import { UnnamedFile } from "../device/unnamed-file.ts";
import { createLike, type Permissions } from "./like-file.ts";
import { type FileLocation, type Location, uriOf } from "./location.ts";
import { exists, removeIfThere } from "./metadata-file.ts";
import { ending, type OpenedDestination, openDestination } from "./open-devices.ts";
import { isStillThere } from "./open-metadata.ts";

/** Permissions of a new file where nothing says otherwise: as many as umask leaves. */
const EVERYBODY = 0o666;

/** How a destination is opened, or made. */
export interface NewDestinationOptions extends RemoteOptions {
  /** Of the source, where that is a file or block device. */
  permissions?: Permissions | undefined;
}

/** An open, locked destination. Disposing of it closes it, and removes it where it was made and is not to be kept. */
export class NewDestination implements AsyncDisposable {
  readonly opened: OpenedDestination;
  /** Whether it was made just now: then it is empty, whatever the file system can tell of holes. */
  readonly isNew: boolean;
  /** Of what is remote, none. */
  readonly #lock: Lock | undefined;
  #kept = false;

  private constructor(opened: OpenedDestination, parts: { isNew: boolean; lock: Lock | undefined }) {
    this.opened = opened;
    this.isNew = parts.isNew;
    this.#lock = parts.lock;
  }

  /**
   * Opens the destination, or makes it: a sparse file of `size` bytes, its name durable, that nobody may read who may not read
   * the source.
   * @throws {BusyError} where another process uses it
   * @throws {DeviceError} where it can be neither opened nor made
   */
  static async open(
    location: Location,
    size: number,
    { permissions, ...options }: NewDestinationOptions = {},
  ): Promise<NewDestination> {
    if (location.kind === "file" && !(await exists(location.path))) {
      return await NewDestination.#make(location, { size, permissions });
    }
    const opened = await openDestination(location, { ...options, access: "read-write" });
    return await ending(opened, async () => {
      const { file } = opened;
      if (file === undefined) return new NewDestination(opened, { isNew: false, lock: undefined });
      const lock = await acquireLock(file);
      return await ending(lock, async () => {
        if (await isStillThere(file)) return new NewDestination(opened, { isNew: false, lock });
        throw new BusyError(`Cannot clone to "${file.path}": somebody else has just removed it`);
      });
    });
  }

  static async #make(
    location: FileLocation,
    { size, permissions }: { size: number; permissions: Permissions | undefined },
  ): Promise<NewDestination> {
    const { path } = location;
    const unnamed =
      permissions === undefined
        ? await UnnamedFile.create(path, { mode: EVERYBODY })
        : await createLike(path, permissions);
    return await ending(unnamed, async () => {
      const file = unnamed.device;
      await file.resize(size);
      await file.flush();
      // Before it has a name, so that whoever else opens it finds it locked, and nobody's work is removed with ours.
      const lock = await acquireLock(file);
      return await ending(lock, async () => {
        if (await unnamed.publish()) {
          const close = (): Promise<void> => unnamed[Symbol.asyncDispose]();
          const opened = { uri: uriOf(location), device: file, file, remote: undefined, [Symbol.asyncDispose]: close };
          return new NewDestination(opened, { isNew: true, lock });
        }
        if (await exists(path)) throw new BusyError(`Cannot create "${path}": somebody else has just done so`);
        throw new UsageError(`Cannot create "${path}": it is a symbolic link to nothing`);
      });
    });
  }

  /** It stays, whatever comes. */
  keep(): void {
    this.#kept = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { file } = this.opened;
    if (file !== undefined && this.isNew && !this.#kept && (await isStillThere(file))) await removeIfThere(file.path);
    this.#lock?.release();
    await this.opened[Symbol.asyncDispose]();
  }
}
