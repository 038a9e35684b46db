/**
 * What a file or block device can do with a range besides reading and writing it, and what it turned out not to.
 *
 * Every method tries the cheap way and tells by its result when the file system or device has no such thing. That is
 * remembered where it cannot change (EOPNOTSUPP and the like), and tried again next time where it may be about this
 * range only (EINVAL). Anything else (ENOSPC, EIO) is an error of the device, and rises.
 */
import type { Extent } from "./block-device.ts";
import { hasZeroRange } from "./file-system.ts";
import {
  blockDiscard,
  blockZeroOut,
  cloneRange,
  copyFileRange,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  fallocate,
  SEEK_DATA,
  SEEK_HOLE,
  seek,
} from "./libc.ts";
import { systemErrno } from "./syscall.ts";

/** Where a range is copied from and to, bytes. */
export interface RangeCopy {
  fromFd: number;
  fromOffset: number;
  toOffset: number;
  length: number;
}

type Ability = "punch" | "zero range" | "zero out" | "discard" | "allocate" | "seek data";

/** Unit and length of what is punched to see whether that can be done: a multiple of every file system's block. Bytes. */
const PROBE = 2 ** 16;

/** Never to be had from this file or device. ENOTSUP is libuv's name for EOPNOTSUPP. */
const UNSUPPORTED = ["EOPNOTSUPP", "ENOTSUP", "ENOSYS", "ENOTTY"];
/** Not to be had for this range, or not to be had at all; the caller has another way. */
const REFUSED = [...UNSUPPORTED, "EINVAL", "EPERM"];
const NOT_SHARED = [...REFUSED, "EXDEV", "ETXTBSY", "EBADF", "EISDIR", "EACCES"];

/** One open file or block device. Does not own `fd`. Ranges of block devices must be multiples of its sectors. */
export class FileRanges {
  readonly #fd: number;
  readonly #kind: "file" | "block";
  readonly #missing = new Set<Ability>();

  constructor(fd: number, kind: "file" | "block") {
    this.#fd = fd;
    this.#kind = kind;
  }

  /** Makes the range read as zeros without sending them; false where that cannot be done. */
  async zero(offset: number, length: number, { mayPunch }: { mayPunch: boolean }): Promise<boolean> {
    if (mayPunch && (await this.punch(offset, length))) return true;
    if (await this.#try("zero range", () => this.#fallocate(FALLOC_ZERO_RANGE, offset, length))) return true;
    return this.#kind === "block" && (await this.#try("zero out", () => blockZeroOut(this.#fd, offset, length)));
  }

  /**
   * Deallocates the range, which then reads as zeros (on a block device too: blkdev_fallocate fails where the device
   * would not promise it); false where that cannot be done.
   */
  punch(offset: number, length: number): Promise<boolean> {
    return this.#try("punch", () => this.#fallocate(FALLOC_PUNCH_HOLE, offset, length));
  }

  /**
   * Whether `zero()` of a file finds a way. Punching is tried behind the end of the file, at `end` or after, where there
   * is nothing to punch.
   */
  async canZeroFile(end: number, { mayPunch }: { mayPunch: boolean }): Promise<boolean> {
    if (mayPunch && (await this.#canPunch(Math.ceil(end / PROBE) * PROBE))) return true;
    return !this.#missing.has("zero range") && (await hasZeroRange(this.#fd));
  }

  /** Says that the content is not needed; false where nobody wants to know. */
  async discard(offset: number, length: number): Promise<boolean> {
    if (this.#kind === "file") return await this.punch(offset, length);
    return await this.#try("discard", () => blockDiscard(this.#fd, offset, length));
  }

  /** Reserves space for the range, leaving what it reads as; false where that cannot be done. Files only. */
  allocate(offset: number, length: number): Promise<boolean> {
    return this.#try("allocate", () => this.#fallocate(0, offset, length));
  }

  /** Shares the blocks of another file; false, with nothing changed, where the two cannot or the range is not aligned. */
  async shareFrom(copy: RangeCopy): Promise<"shared" | "refused" | "never"> {
    try {
      await cloneRange({ ...copy, toFd: this.#fd });
      return "shared";
    } catch (error) {
      const errno = systemErrno(error) ?? "";
      if (!NOT_SHARED.includes(errno)) throw error;
      return errno === "EINVAL" ? "refused" : "never";
    }
  }

  /** Copies from another file inside the kernel; false where it would not, or the other file ends too early. */
  async copyFrom({ fromFd, fromOffset, toOffset, length }: RangeCopy): Promise<boolean> {
    try {
      for (let done = 0; done < length; ) {
        const [from, to] = [fromOffset + done, toOffset + done];
        const range = { fromFd, fromOffset: from, toFd: this.#fd, toOffset: to, length: length - done };
        const count = await copyFileRange(range);
        if (count === 0) return false;
        done += count;
      }
      return true;
    } catch (error) {
      if (!NOT_SHARED.includes(systemErrno(error) ?? "")) throw error;
      return false;
    }
  }

  /** As `BlockDevice.extents`. A block device, and a file system without SEEK_DATA, knows nothing: all is data. */
  async extents(offset: number, length: number): Promise<Extent[]> {
    const end = offset + length;
    const found: Extent[] = [];
    for (let at = offset; at < end; ) {
      const dataStart = Math.min(await this.#nextData(at), end);
      if (dataStart > at) found.push({ offset: at, length: dataStart - at, hole: true, zero: true });
      if (dataStart >= end) break;
      const dataEnd = Math.min(await this.#nextHole(dataStart, end), end);
      found.push({ offset: dataStart, length: dataEnd - dataStart, hole: false, zero: false });
      at = dataEnd;
    }
    return merge(found);
  }

  /** Offset of the first data at or after `at`; Infinity where there is none. */
  async #nextData(at: number): Promise<number> {
    if (this.#kind === "block" || this.#missing.has("seek data")) return at;
    try {
      return Math.max(at, await seek(this.#fd, at, SEEK_DATA));
    } catch (error) {
      if (systemErrno(error) === "ENXIO") return Number.POSITIVE_INFINITY; // lseek(2): only a hole up to the end
      if (!REFUSED.includes(systemErrno(error) ?? "")) throw error;
      this.#missing.add("seek data");
      return at;
    }
  }

  /** Offset of the first hole after `at`, where there is data. */
  async #nextHole(at: number, end: number): Promise<number> {
    if (this.#kind === "block" || this.#missing.has("seek data")) return end;
    try {
      const hole = await seek(this.#fd, at, SEEK_HOLE);
      // The data at `at` may have been punched since: then the next round asks again, one byte on.
      return Math.max(hole, at + 1);
    } catch (error) {
      if (systemErrno(error) === "ENXIO") return end; // the file shrank; reading it will tell
      throw error;
    }
  }

  async #canPunch(behindEnd: number): Promise<boolean> {
    try {
      return await this.punch(behindEnd, PROBE);
    } catch (error) {
      if (systemErrno(error) === "EFBIG") return false; // no file ends there, so that it does not tell
      throw error;
    }
  }

  #fallocate(mode: number, offset: number, length: number): Promise<void> {
    return fallocate(this.#fd, mode === 0 ? 0 : mode + FALLOC_KEEP_SIZE, offset, length);
  }

  async #try(ability: Ability, operation: () => Promise<void>): Promise<boolean> {
    if (this.#missing.has(ability)) return false;
    try {
      await operation();
      return true;
    } catch (error) {
      const errno = systemErrno(error) ?? "";
      if (!REFUSED.includes(errno)) throw error;
      if (UNSUPPORTED.includes(errno)) this.#missing.add(ability);
      return false;
    }
  }
}

/** Neighbours of one status become one extent. */
function merge(extents: Extent[]): Extent[] {
  const merged: Extent[] = [];
  for (const extent of extents) {
    const last = merged.at(-1);
    if (last !== undefined && last.hole === extent.hole && last.zero === extent.zero) last.length += extent.length;
    else merged.push(extent);
  }
  return merged;
}
