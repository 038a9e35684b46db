/**
 * A regular file or block device.
 *
 * It is open up to twice: `#fd` goes through the page cache, `#directFd` (O_DIRECT, of the same inode) past it. A write
 * takes the direct way where memory, offset and length are multiples of a page, so that no page is ever written both
 * ways at once; `WriteGate` does the rest. Reads come from the page cache unless asked otherwise.
 */
import * as fs from "node:fs";
import { constants } from "node:os";
import { promisify } from "node:util";
import { DeviceError, errnoOf, UsageError } from "../base/errors.ts";
import { alignedBuffer, isAligned } from "./aligned-buffer.ts";
import type { BlockDevice, Extent, ZeroOptions } from "./block-device.ts";
import { type FileIdentity, identify } from "./file-identity.ts";
import { FileRanges } from "./file-ranges.ts";
import { FlushQueue } from "./flush-queue.ts";
import { ioError } from "./io-error.ts";
import { pageSize, SyscallError, systemErrno } from "./libc.ts";
import { locateRange } from "./mapped-range.ts";
import { type OpenedFile, type OpenFileOptions, openFile } from "./open-file.ts";
import { checkRange, checkWritable } from "./range-check.ts";
import { WriteGate } from "./write-gate.ts";

/** How to open a file or block device. */
export interface FileDeviceOptions extends OpenFileOptions {
  /** Whether writes of whole pages from page-aligned memory bypass the page cache. Default `auto`: where possible. */
  direct?: "auto" | "off";
  /** Whether reads of whole pages into page-aligned memory bypass it too. Default false. */
  directReads?: boolean;
}

/** Most bytes in one system call; Linux stops just short of 2 GiB. */
const MAX_IO = 2 ** 30;
/** Most bytes zeroed, discarded or allocated in one call, so that none keeps a thread for long. */
const MAX_RANGE = 2 ** 30;
/** Bytes written at a time where zeros must be written. */
const ZERO_BUFFER = 2 ** 20;

const openFd = promisify(fs.open);
const closeFd = promisify(fs.close);
const fdatasync = promisify(fs.fdatasync);
const ftruncate = promisify(fs.ftruncate);
const statfs = promisify(fs.statfs);
const fstat = promisify(fs.fstat) as (fd: number, options: { bigint: true }) => Promise<fs.BigIntStats>;

/** A regular file or block device; see the head of this file. */
export class FileDevice implements BlockDevice {
  readonly name: string;
  /** The path it was opened by. */
  readonly path: string;
  readonly kind: "file" | "block";
  readonly readOnly: boolean;
  readonly blockSize: number;
  /** Who the file is, as of opening it. */
  readonly identity: FileIdentity;

  #size: number;
  readonly #fd: number;
  #directFd: number | undefined;
  #directRefused = false;
  readonly #directReads: boolean;
  readonly #alignment: number;
  readonly #gate = new WriteGate();
  readonly #ranges: FileRanges;
  /** Descriptors written through, ever: flush syncs all, since a network file system may keep data per descriptor. */
  readonly #writtenFds = new Set<number>();
  readonly #neverSharesWith = new WeakSet<FileDevice>();
  readonly #flushes = new FlushQueue(() => this.#sync());
  #inFlight = 0;
  #whenIdle: (() => void) | undefined;
  #closed: Promise<void> | undefined;

  private constructor(path: string, file: OpenedFile, identity: FileIdentity, options: FileDeviceOptions) {
    this.name = path;
    this.path = path;
    this.kind = file.kind;
    this.readOnly = options.access === "read-only";
    this.blockSize = file.blockSize;
    this.identity = identity;
    this.#size = file.size;
    this.#fd = file.fd;
    this.#directReads = options.directReads ?? false;
    this.#alignment = Math.max(pageSize(), file.blockSize);
    this.#ranges = new FileRanges(file.fd, file.kind);
  }

  /**
   * Opens, or makes, a regular file, or opens a block device, the latter for writing only if nobody else uses it.
   *
   * @throws {DeviceError} where the path cannot be opened or made
   * @throws {UsageError} where it is a directory, pipe, socket or character device
   * @throws {BusyError} where it is a block device in use, or a program that runs
   */
  static async open(path: string, options: FileDeviceOptions): Promise<FileDevice> {
    if (options.create !== undefined && options.access === "read-only") {
      throw new TypeError("a file that is made is made for writing");
    }
    const file = await openFile(path, options);
    try {
      const device = new FileDevice(path, file, await identify(file.stats, file.size), options);
      await device.#openDirect(options);
      return device;
    } catch (error) {
      await closeFd(file.fd);
      throw error;
    }
  }

  get size(): number {
    return this.#size;
  }

  /** The buffered descriptor, for locks and questions; the device keeps it, and closes it. */
  get fd(): number {
    return this.#fd;
  }

  /** Whether whole pages from page-aligned memory are written past the page cache, as far as is known by now. */
  get direct(): boolean {
    return this.#directFd !== undefined && !this.#directRefused;
  }

  /** What offsets, lengths and addresses must be multiples of to be written past the page cache. Bytes. */
  get directAlignment(): number {
    return this.#alignment;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    await this.#run("read", offset, buffer.length, async () => {
      for (let done = 0; done < buffer.length; ) {
        const part = buffer.subarray(done, done + MAX_IO);
        const count = await this.#readSome(offset + done, part);
        if (count === 0) await this.#refuseShort(offset, buffer.length);
        done += count;
      }
    });
  }

  async write(offset: number, data: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    this.#checkChange(offset, data.length);
    await this.#run("write", offset, data.length, () => this.#writeAll(offset, data));
    if (options.fua) await this.flush();
  }

  async flush(): Promise<void> {
    if (!this.readOnly) await this.#flushes.flush();
  }

  async zero(offset: number, length: number, { mayPunch = true, fua = false }: ZeroOptions = {}): Promise<void> {
    this.#checkChange(offset, length);
    await this.#run("zero", offset, length, async () => {
      const inner = this.#wholeSectors(offset, length);
      await this.#writeZeros(offset, inner.start - offset);
      for (let at = inner.start; at < inner.end; at += MAX_RANGE) {
        const part = Math.min(MAX_RANGE, inner.end - at);
        const zeroed = await this.#written(this.#fd, this.#ranges.zero(at, part, { mayPunch }));
        if (!zeroed) await this.#writeZeros(at, part);
      }
      await this.#writeZeros(inner.end, offset + length - inner.end);
    });
    if (fua) await this.flush();
  }

  /** Punches a hole in a file, discards on a block device; does nothing where neither is to be had. */
  async discard(offset: number, length: number): Promise<void> {
    this.#checkChange(offset, length);
    await this.#run("discard", offset, length, async () => {
      const inner = this.#wholeSectors(offset, length);
      for (let at = inner.start; at < inner.end; at += MAX_RANGE) {
        const part = Math.min(MAX_RANGE, inner.end - at);
        if (!(await this.#written(this.#fd, this.#ranges.discard(at, part)))) break;
      }
    });
  }

  /**
   * By SEEK_DATA and SEEK_HOLE. A block device, and a file system that cannot tell, says that everything is data.
   * Space that is allocated but was never written may show as a hole.
   */
  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    return await this.#run("query", offset, length, () => this.#ranges.extents(offset, length));
  }

  /**
   * Shares blocks with another file of the same file system (FICLONERANGE), through filters that only move them. What
   * lies before the first and behind the last whole block of the range is copied.
   */
  async reflinkFrom(source: BlockDevice, sourceOffset: number, offset: number, length: number): Promise<boolean> {
    checkRange(source, sourceOffset, length);
    this.#checkChange(offset, length);
    const below = locateRange(source, sourceOffset, length);
    if (!(below.device instanceof FileDevice) || this.#neverSharesWith.has(below.device)) return false;
    if (this.kind === "block" || below.device.kind === "block" || length === 0) return false;
    const from = below.device;
    return await this.#run("reflink", offset, length, () =>
      from.#run("reflink", below.offset, length, () => this.#share(from, below.offset, offset, length)),
    );
  }

  /**
   * Makes sure that writing to the range cannot fail for want of space, without changing what it reads as: fallocate,
   * or writing what was read where there is none. (A file system that never overwrites in place, as btrfs, may still run
   * out.) Nothing to do on a block device. Not to be called during a write to the range. @throws {DeviceError} ENOSPC
   */
  async allocate(offset: number, length: number): Promise<void> {
    this.#checkChange(offset, length);
    if (this.kind === "block") return;
    await this.#run("allocate", offset, length, async () => {
      for (let at = offset; at < offset + length; at += MAX_RANGE) {
        const part = Math.min(MAX_RANGE, offset + length - at);
        if (!(await this.#written(this.#fd, this.#ranges.allocate(at, part)))) await this.#rewrite(at, part);
      }
    });
  }

  /** Cuts a regular file, or extends it by a hole, to `size` bytes; durable after `flush()`. @throws {DeviceError} */
  async resize(size: number): Promise<void> {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`size ${size} is not a number of bytes`);
    this.#checkChange(0, 0);
    if (this.kind === "block") throw new UsageError(`Cannot resize "${this.name}": it is a block device`);
    await this.#run("resize", 0, size, () => this.#written(this.#fd, ftruncate(this.#fd, size)));
    this.#size = size;
  }

  /** Closes it once nothing is in flight any more. Flushes nothing. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    await this.#closed;
  }

  async #close(): Promise<void> {
    // A descriptor closed under a queued request could be reused for another file before the request runs.
    if (this.#inFlight > 0) await new Promise<void>((resolve) => (this.#whenIdle = resolve));
    const fds = this.#directFd === undefined ? [this.#fd] : [this.#directFd, this.#fd];
    for (const fd of fds) await closeFd(fd).catch((error) => this.#fail("close", undefined, undefined, error));
  }

  async #openDirect({ direct = "auto", directReads = false }: FileDeviceOptions): Promise<void> {
    if (direct === "off" || (this.readOnly && !directReads)) return;
    // Through /proc, so that it is the same inode whatever the path names by now; without O_EXCL, which `#fd` holds.
    const access = this.readOnly ? fs.constants.O_RDONLY : fs.constants.O_RDWR;
    const opening = openFd(`/proc/self/fd/${this.#fd}`, access + fs.constants.O_DIRECT);
    // Whatever the reason (no O_DIRECT here, no /proc, no descriptor left), the page cache serves as well.
    this.#directFd = await opening.catch(() => undefined);
  }

  /** The part of a range that consists of whole sectors: all of it in a file, where the kernel does the rest. */
  #wholeSectors(offset: number, length: number): { start: number; end: number } {
    const end = offset + length;
    if (this.kind === "file") return { start: offset, end };
    const start = Math.ceil(offset / this.blockSize) * this.blockSize;
    const innerEnd = Math.floor(end / this.blockSize) * this.blockSize;
    return innerEnd > start ? { start, end: innerEnd } : { start: end, end };
  }

  async #readSome(offset: number, buffer: Uint8Array): Promise<number> {
    if (this.#directReads && this.#isDirect(offset, buffer)) {
      const count = await this.#directly((fd) => readFd(fd, buffer, offset));
      if (count !== undefined) return count;
    }
    return await readFd(this.#fd, buffer, offset);
  }

  async #writeAll(offset: number, data: Uint8Array): Promise<void> {
    for (let done = 0; done < data.length; ) {
      const count = await this.#writeSome(offset + done, data.subarray(done, done + MAX_IO));
      if (count === 0) throw new SyscallError("write", constants.errno.EIO);
      done += count;
    }
  }

  async #writeSome(offset: number, data: Uint8Array): Promise<number> {
    if (this.#isDirect(offset, data)) {
      const count = await this.#directly((fd) =>
        this.#gate.run("direct", () => this.#written(fd, writeFd(fd, data, offset))),
      );
      if (count !== undefined) return count;
    }
    return await this.#gate.run("buffered", () => this.#written(this.#fd, writeFd(this.#fd, data, offset)));
  }

  #isDirect(offset: number, data: Uint8Array): boolean {
    const alignment = this.#alignment;
    if (!this.direct || offset % alignment !== 0 || data.length % alignment !== 0) return false;
    return isAligned(data, alignment);
  }

  /** Undefined where the file system or device takes no direct I/O of this shape after all; it is not asked again. */
  async #directly(operation: (fd: number) => Promise<number>): Promise<number | undefined> {
    const fd = this.#directFd;
    if (fd === undefined) return undefined;
    try {
      return await operation(fd);
    } catch (error) {
      if (errnoOf(error) !== "EINVAL") throw error;
      this.#directRefused = true;
      return undefined;
    }
  }

  async #writeZeros(offset: number, length: number): Promise<void> {
    zeros ??= alignedBuffer(ZERO_BUFFER, this.#alignment);
    for (let done = 0; done < length; done += ZERO_BUFFER) {
      await this.#writeAll(offset + done, zeros.subarray(0, length - done));
    }
  }

  /** Writes back what it reads, as posix_fallocate does where the file system has no fallocate. */
  async #rewrite(offset: number, length: number): Promise<void> {
    const buffer = new Uint8Array(ZERO_BUFFER);
    for (let done = 0; done < length; done += ZERO_BUFFER) {
      const part = buffer.subarray(0, length - done);
      await this.read(offset + done, part);
      await this.#writeAll(offset + done, part);
    }
  }

  async #share(from: FileDevice, fromOffset: number, offset: number, length: number): Promise<boolean> {
    const block = (await statfs(`/proc/self/fd/${this.#fd}`)).bsize;
    if ((fromOffset - offset) % block !== 0) return false;
    const start = Math.ceil(offset / block) * block;
    const end = Math.floor((offset + length) / block) * block;
    if (end <= start) return false;

    const copy = { fromFd: from.#fd, fromOffset: fromOffset + (start - offset), toOffset: start, length: end - start };
    const result = await this.#written(this.#fd, this.#ranges.shareFrom(copy));
    if (result === "never") this.#neverSharesWith.add(from);
    if (result !== "shared") return false;
    for (const [partStart, partEnd] of [
      [offset, start],
      [end, offset + length],
    ] as const) {
      const part = new Uint8Array(partEnd - partStart);
      await from.read(fromOffset + (partStart - offset), part);
      await this.#writeAll(partStart, part);
    }
    return true;
  }

  async #sync(): Promise<void> {
    const fds = this.#writtenFds.size === 0 ? [this.#fd] : [...this.#writtenFds];
    await this.#run("flush", undefined, undefined, async () => {
      for (const fd of fds) await fdatasync(fd);
    });
  }

  /** Notes that `fd` has something to flush once an operation is over, failed or not: it may have done a part. */
  async #written<T>(fd: number, operation: Promise<T>): Promise<T> {
    try {
      return await operation;
    } finally {
      this.#writtenFds.add(fd);
    }
  }

  #checkChange(offset: number, length: number): void {
    checkRange(this, offset, length);
    checkWritable(this);
    this.#flushes.check();
  }

  /** Every operation runs in here: it is counted, so that closing waits for it, and its errors are put in words. */
  async #run<T>(
    verb: string,
    offset: number | undefined,
    length: number | undefined,
    operation: () => Promise<T>,
  ): Promise<T> {
    if (this.#closed !== undefined) throw new TypeError(`"${this.name}" is closed`);
    this.#inFlight += 1;
    try {
      return await operation();
    } catch (error) {
      return this.#fail(verb, offset, length, error);
    } finally {
      this.#inFlight -= 1;
      if (this.#inFlight === 0) this.#whenIdle?.();
    }
  }

  #fail(verb: string, offset: number | undefined, length: number | undefined, cause: unknown): never {
    const errno = systemErrno(cause);
    if (errno === undefined || cause instanceof DeviceError) throw cause;
    throw ioError({ verb, name: this.name, offset, length, errno, cause });
  }

  async #refuseShort(offset: number, length: number): Promise<never> {
    const { size } = await fstat(this.#fd, { bigint: true });
    const why = this.kind === "file" ? `the file shrank to ${size} bytes` : "the device ends before";
    throw new DeviceError(`Cannot read ${length} bytes at ${offset} from "${this.name}": ${why}`, { offset, length });
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
