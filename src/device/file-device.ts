/** A regular file or block device: `FileIo` and `FileRanges` behind the checks, errors and life of a BlockDevice. */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { DeviceError, UsageError } from "../base/errors.ts";
import type { BlockDevice, Extent, ZeroOptions } from "./block-device.ts";
import { blockDeviceZeroesFast, type FileIdentity, identify, statDescriptor } from "./file-identity.ts";
import { FileIo } from "./file-io.ts";
import { FileRanges } from "./file-ranges.ts";
import { fileSystemKind } from "./file-system.ts";
import { FlushQueue } from "./flush-queue.ts";
import { ioError } from "./io-error.ts";
import { locateRange } from "./mapped-range.ts";
import { type OpenedFile, type OpenFileOptions, openFile } from "./open-file.ts";
import { checkRange, checkWritable } from "./range-check.ts";
import { systemErrno } from "./syscall.ts";

/** How to open a file or block device. */
export interface FileDeviceOptions extends OpenFileOptions {
  /** Whether writes of whole pages from page-aligned memory bypass the page cache. Default `auto`: where possible. */
  direct?: "auto" | "off";
  /** Whether reads of whole pages into page-aligned memory bypass it too. Default false. */
  directReads?: boolean;
  /** The path that it is, or will be, known by, where that is not the one it is opened by. */
  knownAs?: string;
}

/** Most bytes zeroed, discarded or allocated in one call, so that none keeps a thread for long. */
const MAX_RANGE = 2 ** 30;

const closeFd = promisify(fs.close);
const ftruncate = promisify(fs.ftruncate);
const statfs = promisify(fs.statfs);

/** A regular file or block device. */
export class FileDevice implements BlockDevice {
  readonly name: string;
  /** The path it is known by. */
  readonly path: string;
  readonly kind: "file" | "block";
  readonly readOnly: boolean;
  readonly blockSize: number;
  /** Who the file is, as of opening it. */
  readonly identity: FileIdentity;

  #size: number;
  readonly #io: FileIo;
  readonly #ranges: FileRanges;
  readonly #neverSharesWith = new WeakSet<FileDevice>();
  readonly #zeroesFast = new Map<boolean, boolean>();
  readonly #flushes = new FlushQueue(() => this.#run("flush", undefined, undefined, () => this.#io.sync()));
  #inFlight = 0;
  #whenIdle: (() => void) | undefined;
  #closed: Promise<void> | undefined;

  private constructor(path: string, file: OpenedFile, identity: FileIdentity, io: FileIo, readOnly: boolean) {
    this.name = path;
    this.path = path;
    this.kind = file.kind;
    this.readOnly = readOnly;
    this.blockSize = file.blockSize;
    this.identity = identity;
    this.#size = file.size;
    this.#io = io;
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
      const identity = await identify(file.stats, file.size);
      const readOnly = options.access === "read-only";
      const { direct = "auto", directReads = false } = options;
      const inMemory = file.kind === "file" && (await fileSystemKind(file.fd)) === "tmpfs";
      const ways = { readOnly, blockSize: file.blockSize, directWrites: direct === "auto", directReads, inMemory };
      return new FileDevice(options.knownAs ?? path, file, identity, await FileIo.open(file.fd, ways), readOnly);
    } catch (error) {
      await closeFd(file.fd);
      throw error;
    }
  }

  /** Length in bytes; changes by `resize()` alone. */
  get size(): number {
    return this.#size;
  }

  /** The buffered descriptor, for locks and questions; the device keeps it, and closes it. */
  get fd(): number {
    return this.#io.fd;
  }

  /** Whether whole pages from page-aligned memory are written past the page cache, as far as is known by now. */
  get direct(): boolean {
    return this.#io.direct;
  }

  /** What offsets, lengths and addresses must be multiples of to be written past the page cache. Bytes. */
  get directAlignment(): number {
    return this.#io.alignment;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    this.#enter(); // as `#run`, without its promises, which are a tenth of the time that a small read takes
    try {
      if ((await this.#io.read(offset, buffer)) < buffer.length) await this.#refuseShort(offset, buffer.length);
    } catch (error) {
      this.#fail("read", offset, buffer.length, error);
    } finally {
      this.#leave();
    }
  }

  async write(offset: number, data: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    this.#checkChange(offset, data.length);
    await this.#run("write", offset, data.length, () => this.#io.write(offset, data));
    if (options.fua) await this.flush();
  }

  /** From memory or the page cache. What goes wrong is left to `read()` to report. */
  tryRead(offset: number, buffer: Uint8Array): boolean {
    checkRange(this, offset, buffer.length);
    this.#checkOpen();
    return this.#io.tryRead(offset, buffer);
  }

  /** To memory or the page cache. What goes wrong is left to `write()` to report, except that a flush has failed. */
  tryWrite(offset: number, data: Uint8Array): boolean {
    this.#checkChange(offset, data.length);
    this.#checkOpen();
    return this.#io.tryWrite(offset, data);
  }

  /** Also where it is open for reading only: what was read may be of another process's writing, and not be durable yet. */
  async flush(): Promise<void> {
    await this.#flushes.flush();
  }

  async zero(offset: number, length: number, { mayPunch = true, fua = false }: ZeroOptions = {}): Promise<void> {
    this.#checkChange(offset, length);
    await this.#run("zero", offset, length, async () => {
      const inner = this.#wholeSectors(offset, length);
      await this.#io.writeZeros(offset, inner.start - offset);
      for (let at = inner.start; at < inner.end; at += MAX_RANGE) {
        const part = Math.min(MAX_RANGE, inner.end - at);
        const zeroed = await this.#io.changed(this.#ranges.zero(at, part, { mayPunch }));
        if (!zeroed) await this.#io.writeZeros(at, part);
      }
      await this.#io.writeZeros(inner.end, offset + length - inner.end);
    });
    if (fua) await this.flush();
  }

  /**
   * For a file, punching is tried behind its end: not to be asked while it is resized. Of a block device sysfs tells. The
   * answer is kept.
   */
  async canZeroFast({ mayPunch }: { mayPunch: boolean }): Promise<boolean> {
    if (this.readOnly) return false;
    const known = this.#zeroesFast.get(mayPunch);
    if (known !== undefined) return known;
    const can = await this.#run("query", undefined, undefined, () =>
      this.kind === "block"
        ? blockDeviceZeroesFast(this.identity.rdev ?? "")
        : this.#io.changed(this.#ranges.canZeroFile(this.#size, { mayPunch })),
    );
    this.#zeroesFast.set(mayPunch, can);
    return can;
  }

  /** Punches a hole in a file, discards on a block device; does nothing where neither is to be had. */
  async discard(offset: number, length: number): Promise<void> {
    this.#checkChange(offset, length);
    await this.#run("discard", offset, length, async () => {
      const inner = this.#wholeSectors(offset, length);
      for (let at = inner.start; at < inner.end; at += MAX_RANGE) {
        const part = Math.min(MAX_RANGE, inner.end - at);
        if (!(await this.#io.changed(this.#ranges.discard(at, part)))) break;
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
        if (!(await this.#io.changed(this.#ranges.allocate(at, part)))) await this.#io.rewrite(at, part);
      }
    });
  }

  /** Cuts a regular file, or extends it by a hole, to `size` bytes; durable after `flush()`. @throws {DeviceError} */
  async resize(size: number): Promise<void> {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`size ${size} is not a number of bytes`);
    this.#checkChange(0, 0);
    if (this.kind === "block") throw new UsageError(`Cannot resize "${this.name}": it is a block device`);
    await this.#run("resize", 0, size, () => this.#io.changed(ftruncate(this.fd, size)));
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
    await this.#io.close().catch((error) => this.#fail("close", undefined, undefined, error));
  }

  /** The part of a range that consists of whole sectors: all of it in a file, where the kernel does the rest. */
  #wholeSectors(offset: number, length: number): { start: number; end: number } {
    const end = offset + length;
    if (this.kind === "file") return { start: offset, end };
    const start = Math.ceil(offset / this.blockSize) * this.blockSize;
    const innerEnd = Math.floor(end / this.blockSize) * this.blockSize;
    return innerEnd > start ? { start, end: innerEnd } : { start: end, end };
  }

  async #share(from: FileDevice, fromOffset: number, offset: number, length: number): Promise<boolean> {
    const block = (await statfs(`/proc/self/fd/${this.fd}`)).bsize;
    if ((fromOffset - offset) % block !== 0) return false;
    const start = Math.ceil(offset / block) * block;
    const end = Math.floor((offset + length) / block) * block;
    if (end <= start) return false;

    const copy = { fromFd: from.fd, fromOffset: fromOffset + (start - offset), toOffset: start, length: end - start };
    const result = await this.#io.changed(this.#ranges.shareFrom(copy));
    if (result === "never") this.#neverSharesWith.add(from);
    if (result !== "shared") return false;
    for (const [partStart, partEnd] of [
      [offset, start],
      [end, offset + length],
    ] as const) {
      const partFrom = fromOffset + (partStart - offset);
      const rest = { fromFd: from.fd, fromOffset: partFrom, toOffset: partStart, length: partEnd - partStart };
      if (await this.#io.changed(this.#ranges.copyFrom(rest))) continue;
      const part = new Uint8Array(partEnd - partStart);
      if ((await from.#io.read(partFrom, part)) < part.length) await from.#refuseShort(partFrom, part.length);
      await this.#io.write(partStart, part);
    }
    return true;
  }

  #checkChange(offset: number, length: number): void {
    checkRange(this, offset, length);
    checkWritable(this);
    this.#flushes.check();
  }

  #checkOpen(): void {
    if (this.#closed !== undefined) throw new TypeError(`"${this.name}" is closed`);
  }

  /** Every operation that waits runs in here: it is counted, so that closing waits for it, and its errors are put in words. */
  async #run<T>(
    verb: string,
    offset: number | undefined,
    length: number | undefined,
    operation: () => Promise<T>,
  ): Promise<T> {
    this.#enter();
    try {
      return await operation();
    } catch (error) {
      return this.#fail(verb, offset, length, error);
    } finally {
      this.#leave();
    }
  }

  #enter(): void {
    this.#checkOpen();
    this.#inFlight += 1;
  }

  #leave(): void {
    this.#inFlight -= 1;
    if (this.#inFlight === 0) this.#whenIdle?.();
  }

  #fail(verb: string, offset: number | undefined, length: number | undefined, cause: unknown): never {
    const errno = systemErrno(cause);
    if (errno === undefined || cause instanceof DeviceError) throw cause;
    // A disk that answers ETIMEDOUT is there: it is some of its bytes that are not.
    throw ioError({ verb, name: this.name, offset, length, errno, cause, away: false });
  }

  async #refuseShort(offset: number, length: number): Promise<never> {
    const { size } = await statDescriptor(this.fd, { bigint: true });
    const why = this.kind === "file" ? `the file shrank to ${size} bytes` : "the device became smaller";
    throw new DeviceError(`Cannot read ${length} bytes at ${offset} from "${this.name}": ${why}`, { offset, length });
  }
}
