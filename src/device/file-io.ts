/**
 * Reading, writing and syncing an open file, past the page cache where that is possible.
 *
 * The file is open up to twice: `fd` goes through the page cache, `#directFd` (O_DIRECT, of the same inode) past it. A
 * write takes the direct way where memory, offset and length are multiples of a page, so that no page is ever written
 * both ways at once; `WriteGate` does the rest. Reads come from the page cache unless asked otherwise.
 */
import * as fs from "node:fs";
import { constants } from "node:os";
import { promisify } from "node:util";
import { alignedBuffer, isAligned } from "./aligned-buffer.ts";
import { ImmediateFileIo, MAX_IMMEDIATE } from "./immediate-file-io.ts";
import { pageSize } from "./libc.ts";
import { SyscallError, systemErrno } from "./syscall.ts";
import { WriteGate } from "./write-gate.ts";

/** Which ways an open file is used. */
export interface FileIoOptions {
  /** Whether it is open for reading only. */
  readOnly: boolean;
  /** Bytes that direct I/O comes in multiples of, if more than a page. */
  blockSize: number;
  /** Whether writes of whole pages from page-aligned memory bypass the page cache where possible. */
  directWrites: boolean;
  /** Whether reads of whole pages into page-aligned memory bypass it where possible. */
  directReads: boolean;
  /** Whether it has no disk behind it, so that there is nothing to bypass either. */
  inMemory: boolean;
}

/** Most bytes in one system call; Linux stops just short of 2 GiB. */
const MAX_IO = 2 ** 30;
/** Bytes written at a time where zeros must be written. */
const ZERO_BUFFER = 2 ** 20;

const openFd = promisify(fs.open);
const closeFd = promisify(fs.close);
const fdatasync = promisify(fs.fdatasync);

/** An open file or block device. Owns its descriptors. Errors are those of the system, without words around them. */
export class FileIo {
  /** The buffered descriptor, for whatever needs one. */
  readonly fd: number;
  /** What offsets, lengths and addresses must be multiples of to bypass the page cache. Bytes. */
  readonly alignment: number;
  readonly #options: FileIoOptions;
  #directFd: number | undefined;
  #directRefused = false;
  readonly #gate = new WriteGate();
  readonly #immediate: ImmediateFileIo;
  /** Changes in flight that may hold the inode's lock for longer than an immediate write may wait. */
  #longChanges = 0;
  /** Descriptors written through, ever: `sync` syncs all, since a network file system may keep data per descriptor. */
  readonly #written = new Set<number>();

  private constructor(fd: number, options: FileIoOptions) {
    this.fd = fd;
    this.alignment = Math.max(pageSize(), options.blockSize);
    this.#options = options;
    this.#immediate = new ImmediateFileIo(fd, options);
  }

  /** Takes over `fd`, where it does not throw. */
  static async open(fd: number, options: FileIoOptions): Promise<FileIo> {
    const io = new FileIo(fd, options);
    if (options.inMemory || (!options.directReads && (options.readOnly || !options.directWrites))) return io;
    // Through /proc, so that it is the same inode whatever the path names by now; without O_EXCL, which `fd` holds.
    const access = options.readOnly ? fs.constants.O_RDONLY : fs.constants.O_RDWR;
    const opening = openFd(`/proc/self/fd/${fd}`, access + fs.constants.O_DIRECT);
    // Whatever the reason (no O_DIRECT here, no /proc, no descriptor left), the page cache serves as well.
    io.#directFd = await opening.catch(() => undefined);
    return io;
  }

  /** Whether aligned requests bypass the page cache, as far as is known by now. */
  get direct(): boolean {
    return this.#directFd !== undefined && !this.#directRefused;
  }

  /** Fills `buffer` from `offset`; resolves to less than its length only where the file ends. */
  async read(offset: number, buffer: Uint8Array): Promise<number> {
    let done = 0;
    while (done < buffer.length) {
      const part = done === 0 && buffer.length <= MAX_IO ? buffer : buffer.subarray(done, done + MAX_IO);
      const direct = this.#options.directReads && this.#isAligned(offset + done, part);
      const count = await (direct ? this.#readDirect(offset + done, part) : readFd(this.fd, part, offset + done));
      if (count === 0) break;
      done += count;
    }
    return done;
  }

  /** Writes all of `data` at `offset`; durable after `sync()`. */
  async write(offset: number, data: Uint8Array): Promise<void> {
    for (let done = 0; done < data.length; ) {
      const count = await this.#writeSome(offset + done, data.subarray(done, done + MAX_IO));
      if (count === 0) throw new SyscallError("write", constants.errno.EIO);
      done += count;
    }
  }

  /** As `ImmediateIo.tryRead`, but for errors: those are left to `read()`. */
  tryRead(offset: number, buffer: Uint8Array): boolean {
    return this.#immediate.tryRead(offset, buffer);
  }

  /** As `ImmediateIo.tryWrite`, but for errors: those are left to `write()`. */
  tryWrite(offset: number, data: Uint8Array): boolean {
    if (this.#longChanges > 0 || !this.#gate.isOpenTo("buffered")) return false;
    this.#written.add(this.fd); // it may fail after having written a part
    return this.#immediate.tryWrite(offset, data);
  }

  /** Writes `length` zeros at `offset`. */
  async writeZeros(offset: number, length: number): Promise<void> {
    zeros ??= alignedBuffer(ZERO_BUFFER, this.alignment);
    for (let done = 0; done < length; done += ZERO_BUFFER) {
      await this.write(offset + done, zeros.subarray(0, length - done));
    }
  }

  /** Writes back what it reads, which makes the file system allocate the range. */
  async rewrite(offset: number, length: number): Promise<void> {
    const buffer = new Uint8Array(Math.min(ZERO_BUFFER, length));
    for (let done = 0; done < length; done += ZERO_BUFFER) {
      const part = buffer.subarray(0, length - done);
      await this.write(offset + done, part.subarray(0, await this.read(offset + done, part)));
    }
  }

  /** Awaits another change made through `fd`, and has `sync` make it durable. */
  changed<T>(change: Promise<T>): Promise<T> {
    return this.#noteWritten(this.fd, change, { long: true });
  }

  /** Makes durable what has been written before the call. Not to be called again before it has settled. */
  async sync(): Promise<void> {
    const fds = this.#written.size === 0 ? [this.fd] : [...this.#written];
    for (const fd of fds) await fdatasync(fd);
  }

  /** Closes both descriptors, when nothing is in flight. */
  async close(): Promise<void> {
    if (this.#directFd !== undefined) await closeFd(this.#directFd);
    await closeFd(this.fd);
  }

  async #readDirect(offset: number, buffer: Uint8Array): Promise<number> {
    return (await this.#directly((fd) => readFd(fd, buffer, offset))) ?? (await readFd(this.fd, buffer, offset));
  }

  async #writeSome(offset: number, data: Uint8Array): Promise<number> {
    if (this.#options.directWrites && this.#isAligned(offset, data)) {
      const count = await this.#directly((fd) =>
        this.#gate.run("direct", () => this.#noteWritten(fd, writeFd(fd, data, offset), { long: false })),
      );
      if (count !== undefined) return count;
    }
    const long = data.length > MAX_IMMEDIATE;
    return await this.#gate.run("buffered", () => this.#noteWritten(this.fd, writeFd(this.fd, data, offset), { long }));
  }

  #isAligned(offset: number, data: Uint8Array): boolean {
    if (offset % this.alignment !== 0 || data.length % this.alignment !== 0) return false;
    return isAligned(data, this.alignment);
  }

  /** Undefined where the file system or device takes no direct I/O of this shape after all; it is not asked again. */
  async #directly(operation: (fd: number) => Promise<number>): Promise<number | undefined> {
    if (this.#directFd === undefined || this.#directRefused) return undefined;
    try {
      return await operation(this.#directFd);
    } catch (error) {
      if (systemErrno(error) !== "EINVAL") throw error;
      this.#directRefused = true;
      return undefined;
    }
  }

  /** Notes that `fd` has something to sync once an operation is over, failed or not: it may have done a part. */
  async #noteWritten<T>(fd: number, operation: Promise<T>, { long }: { long: boolean }): Promise<T> {
    if (long) this.#longChanges += 1;
    try {
      return await operation;
    } finally {
      if (long) this.#longChanges -= 1;
      this.#written.add(fd);
    }
  }
}

/** Zeros to write from, made once they are needed. */
let zeros: Uint8Array | undefined;

const readFd = (fd: number, buffer: Uint8Array, offset: number): Promise<number> =>
  new Promise((resolve, reject) => {
    fs.read(fd, buffer, 0, buffer.length, offset, (error, count) => (error ? reject(error) : resolve(count)));
  });

const writeFd = (fd: number, data: Uint8Array, offset: number): Promise<number> =>
  new Promise((resolve, reject) => {
    fs.write(fd, data, 0, data.length, offset, (error, count) => (error ? reject(error) : resolve(count)));
  });
