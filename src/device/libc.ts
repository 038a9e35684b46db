/** The system calls that Node lacks, as functions. How they are called, and how errno travels: see `syscall.ts`. */
import { closeSync } from "node:fs";
import { constants } from "node:os";
import type { KoffiFunc } from "koffi";
import { call, callAsync, cLibrary, SyscallError } from "./syscall.ts";

/** fallocate(2) modes. */
export const FALLOC_KEEP_SIZE = 0x01;
export const FALLOC_PUNCH_HOLE = 0x02;
export const FALLOC_ZERO_RANGE = 0x10;
/** lseek(2): the next data, the next hole. */
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;
/** posix_fadvise(2). */
export const FADV_SEQUENTIAL = 2;
export const FADV_DONTNEED = 4;

/** linux/fs.h and linux/loop.h, for architectures with the generic _IOC encoding. */
const FICLONERANGE = 0x4020940d;
const BLKDISCARD = 0x1277;
const BLKZEROOUT = 0x127f;
const BLKSSZGET = 0x1268;
const BLKPBSZGET = 0x127b;
const BLKGETSIZE64 = 0x80081272;
const FS_IOC_GETFLAGS = 0x80086601;
const LOOP_GET_STATUS64 = 0x4c05;
/** linkat(2). */
const AT_FDCWD = -100;
const AT_SYMLINK_FOLLOW = 0x400;
/** madvise(2). */
const MADV_HUGEPAGE = 14;
/** socket(2), send(2), sockaddr_un of unix(7); SOCK_CLOEXEC is O_CLOEXEC, the same on all we run on. */
const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
/** socket(7). */
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const MAX_SOCKET_PATH = 107;
/** More than struct statfs has anywhere. */
const SIZEOF_STATFS = 256;
/** fcntl(2). */
const F_DUPFD_CLOEXEC = 1030;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const SIZEOF_FLOCK = 32;
const SIZEOF_LOOP_INFO64 = 232;

/** Allocates, punches or zeroes a range of a file or block device (fallocate(2)). Bytes. @throws {SyscallError} */
export async function fallocate(fd: number, mode: number, offset: number, length: number): Promise<void> {
  await callAsync("fallocate", libc().fallocate, fd, mode, offset, length);
}

/** lseek(2) with SEEK_DATA or SEEK_HOLE; moves the descriptor's own offset. @throws {SyscallError} */
export function seek(fd: number, offset: number, whence: typeof SEEK_DATA | typeof SEEK_HOLE): Promise<number> {
  return callAsync("lseek", libc().lseek, fd, offset, whence);
}

/** Copies inside the kernel; resolves to the bytes copied, 0 at the end of the source. @throws {SyscallError} */
export function copyFileRange(copy: {
  fromFd: number;
  fromOffset: number;
  toFd: number;
  toOffset: number;
  length: number;
}): Promise<number> {
  const from = int64s(copy.fromOffset);
  const to = int64s(copy.toOffset);
  return callAsync("copy_file_range", libc().copy_file_range, copy.fromFd, from, copy.toFd, to, copy.length, 0);
}

/** Makes a range of one file share the blocks of another (FICLONERANGE, ioctl_ficlonerange(2)). @throws {SyscallError} */
export async function cloneRange(clone: {
  fromFd: number;
  fromOffset: number;
  toFd: number;
  toOffset: number;
  length: number;
}): Promise<void> {
  // struct file_clone_range
  const range = int64s(clone.fromFd, clone.fromOffset, clone.length, clone.toOffset);
  await callAsync("ioctl FICLONERANGE", libc().ioctl, clone.toFd, FICLONERANGE, range);
}

/** Tells the page cache what will or will not be needed. @throws {SyscallError} */
export async function fadvise(fd: number, offset: number, length: number, advice: number): Promise<void> {
  // The only one of these that returns its errno.
  const errno = await callAsync("posix_fadvise", libc().posix_fadvise, fd, offset, length, advice);
  if (errno !== 0) throw new SyscallError("posix_fadvise", errno);
}

/** Length and sector sizes of a block device, bytes. @throws {SyscallError} */
export function blockDeviceGeometry(fd: number): { size: number; logicalBlockSize: number; physicalBlockSize: number } {
  const size = new BigUint64Array(1);
  const logical = new Int32Array(1);
  const physical = new Uint32Array(1);
  call("ioctl BLKGETSIZE64", libc().ioctl, fd, BLKGETSIZE64, size);
  call("ioctl BLKSSZGET", libc().ioctl, fd, BLKSSZGET, logical);
  call("ioctl BLKPBSZGET", libc().ioctl, fd, BLKPBSZGET, physical);
  return { size: Number(size[0]), logicalBlockSize: logical[0] ?? 0, physicalBlockSize: physical[0] ?? 0 };
}

/** Discards a sector-aligned range of a block device; its content is undefined then. @throws {SyscallError} */
export async function blockDiscard(fd: number, offset: number, length: number): Promise<void> {
  await callAsync("ioctl BLKDISCARD", libc().ioctl, fd, BLKDISCARD, int64s(offset, length));
}

/** Zeroes a sector-aligned range of a block device, by writing where it must. @throws {SyscallError} */
export async function blockZeroOut(fd: number, offset: number, length: number): Promise<void> {
  await callAsync("ioctl BLKZEROOUT", libc().ioctl, fd, BLKZEROOUT, int64s(offset, length));
}

/** Device number (as st_dev) and inode of the file behind a loop device. @throws {SyscallError} ENXIO: none is set. */
export function loopBackingFile(fd: number): { dev: bigint; ino: bigint } {
  const info = Buffer.alloc(SIZEOF_LOOP_INFO64); // struct loop_info64 begins with lo_device and lo_inode
  call("ioctl LOOP_GET_STATUS64", libc().ioctl, fd, LOOP_GET_STATUS64, info);
  return { dev: info.readBigUInt64LE(0), ino: info.readBigUInt64LE(8) };
}

/**
 * Takes a lock on bytes of a file, for the open file description (fcntl_locking(2), F_OFD_SETLK), or false where another
 * description holds one that excludes it. @throws {SyscallError} EBADF: exclusive, and `fd` is not open for writing
 */
export function tryLock(fd: number, kind: "shared" | "exclusive", offset: number, length: number): boolean {
  const type = kind === "shared" ? F_RDLCK : F_WRLCK;
  try {
    call("fcntl F_OFD_SETLK", libc().fcntl, fd, F_OFD_SETLK, flock(type, offset, length));
    return true;
  } catch (error) {
    if (error instanceof SyscallError && (error.code === "EAGAIN" || error.code === "EACCES")) return false;
    throw error;
  }
}

/** Releases the locks that this open file description has on the bytes. @throws {SyscallError} */
export function unlock(fd: number, offset: number, length: number): void {
  call("fcntl F_OFD_SETLK", libc().fcntl, fd, F_OFD_SETLK, flock(F_UNLCK, offset, length));
}

/**
 * Whether a lock of another open file description lies on the bytes that would keep out one of `kind`: an exclusive one
 * is kept out by any, a shared one by an exclusive. Takes nothing. @throws {SyscallError}
 */
export function isLocked(fd: number, kind: "shared" | "exclusive", offset: number, length: number): boolean {
  const lock = flock(kind === "shared" ? F_RDLCK : F_WRLCK, offset, length);
  call("fcntl F_OFD_GETLK", libc().fcntl, fd, F_OFD_GETLK, lock);
  return lock.readInt16LE(0) !== F_UNLCK;
}

/** Another descriptor of the same open file description. @throws {SyscallError} */
export function duplicate(fd: number): number {
  return call("fcntl F_DUPFD_CLOEXEC", libc().fcntl, fd, F_DUPFD_CLOEXEC, null);
}

/** Makes one descriptor stand for what another stands for, in one step (dup3(2)). @throws {SyscallError} */
export function replaceDescriptor(from: number, to: number): void {
  call("dup3", libc().dup3, from, to, SOCK_CLOEXEC);
}

/**
 * Gives the file open as `fd` a name (linkat(2) of its entry in /proc), as long as none stands there.
 * @throws {SyscallError} EEXIST where one does
 */
export function linkDescriptor(fd: number, path: string): void {
  call("linkat", libc().linkat, AT_FDCWD, `/proc/self/fd/${fd}`, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

/** What kind of file system an open file lies on (fstatfs(2)): its magic number. @throws {SyscallError} */
export async function fileSystemType(fd: number): Promise<number> {
  const status = Buffer.alloc(SIZEOF_STATFS); // struct statfs begins with f_type, a long
  await callAsync("fstatfs", libc().fstatfs, fd, status);
  return status.readUInt32LE(0);
}

/** The attributes of an inode (ioctl_iflags(2)). @throws {SyscallError} ENOTTY: it has none */
export function inodeFlags(fd: number): number {
  const flags = Buffer.alloc(8); // a long by its number, an int in fact
  call("ioctl FS_IOC_GETFLAGS", libc().ioctl, fd, FS_IOC_GETFLAGS, flags);
  return flags.readUInt32LE(0);
}

/**
 * Sends one datagram to a unix socket, as sd_notify(3) does; a path that begins with `@` is an abstract one.
 * Does not wait. @throws {SyscallError} EAGAIN where the receiver has too much to read, ENAMETOOLONG
 */
export function sendDatagram(path: string, data: string): void {
  const name = Buffer.from(path);
  if (name[0] === 0x40) name[0] = 0;
  if (name.length > MAX_SOCKET_PATH) throw new SyscallError("sendto", constants.errno.ENAMETOOLONG);
  const address = Buffer.alloc(2 + name.length); // struct sockaddr_un; the length ends the path, no byte needs to
  address.writeUInt16LE(AF_UNIX, 0);
  name.copy(address, 2);
  const fd = call("socket", libc().socket, AF_UNIX, SOCK_DGRAM + SOCK_CLOEXEC, 0);
  try {
    const bytes = Buffer.from(data);
    call("sendto", libc().sendto, fd, bytes, bytes.length, MSG_DONTWAIT + MSG_NOSIGNAL, address, address.length);
  } finally {
    closeSync(fd);
  }
}

/**
 * Asks for room for `bytes` that a socket's peer has not read yet (SO_SNDBUF). Only a wish, of which a system grants as much
 * as it likes (net.core.wmem_max). Not for TCP, which finds out by itself what is best as long as it is not told.
 */
export function wishSendBuffer(fd: number, bytes: number): void {
  libc().setsockopt(fd, SOL_SOCKET, SO_SNDBUF, Int32Array.of(bytes), 4);
}

/**
 * Ends the process at once (_exit(2)): nothing is flushed or disposed of. `process.exit()` waits for libuv's threads,
 * for ever if one hangs in a read of a dead source; this does not.
 */
export function exitNow(code: number): never {
  libc()._exit(code);
  throw new Error("_exit returned");
}

/** Bytes per page of memory. */
export function pageSize(): number {
  return call("getpagesize", libc().getpagesize);
}

/**
 * Asks for huge pages under a view (madvise(2), MADV_HUGEPAGE), which saves a device the work of gathering a large write
 * from many small pages. Only a wish: a kernel without them says no, and nothing is lost.
 */
export function wishHugePages(view: Uint8Array): void {
  libc().madvise(view, view.length, MADV_HUGEPAGE);
}

/** Where the bytes of a view lie in memory. Exact: user space ends below 2^53 on every 64-bit Linux. */
export function addressOf(view: ArrayBufferView): number {
  return Number(cLibrary().koffi.address(view));
}

interface Libc {
  fallocate: KoffiFunc<(fd: number, mode: number, offset: number, length: number) => number>;
  lseek: KoffiFunc<(fd: number, offset: number, whence: number) => number>;
  copy_file_range: KoffiFunc<
    (fd: number, offset: BigInt64Array, toFd: number, toOffset: BigInt64Array, length: number, flags: number) => number
  >;
  posix_fadvise: KoffiFunc<(fd: number, offset: number, length: number, advice: number) => number>;
  ioctl: KoffiFunc<(fd: number, request: number, argument: ArrayBufferView) => number>;
  fcntl: KoffiFunc<(fd: number, command: number, argument: ArrayBufferView | null) => number>;
  dup3: KoffiFunc<(from: number, to: number, flags: number) => number>;
  getpagesize: KoffiFunc<() => number>;
  linkat: KoffiFunc<(fromFd: number, from: string, toFd: number, to: string, flags: number) => number>;
  madvise: KoffiFunc<(address: ArrayBufferView, length: number, advice: number) => number>;
  fstatfs: KoffiFunc<(fd: number, status: ArrayBufferView) => number>;
  socket: KoffiFunc<(family: number, type: number, protocol: number) => number>;
  sendto: KoffiFunc<
    (
      fd: number,
      data: ArrayBufferView,
      length: number,
      flags: number,
      address: ArrayBufferView,
      addressLength: number,
    ) => number
  >;
  setsockopt: KoffiFunc<
    (fd: number, level: number, name: number, value: ArrayBufferView, valueLength: number) => number
  >;
  _exit: KoffiFunc<(status: number) => void>;
}

let declared: Libc | undefined;

function libc(): Libc {
  declared ??= declareAll();
  return declared;
}

function declareAll(): Libc {
  const { library } = cLibrary();
  const declare = (prototype: string) => library.func(prototype);
  return {
    fallocate: declare("int fallocate(int fd, int mode, int64_t offset, int64_t length)"),
    lseek: declare("int64_t lseek(int fd, int64_t offset, int whence)"),
    copy_file_range: declare(
      "int64_t copy_file_range(int fd, void *offset, int toFd, void *toOffset, size_t length, unsigned int flags)",
    ),
    posix_fadvise: declare("int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)"),
    ioctl: declare("int ioctl(int fd, unsigned long request, void *argument)"),
    fcntl: declare("int fcntl(int fd, int command, void *argument)"),
    dup3: declare("int dup3(int from, int to, int flags)"),
    getpagesize: declare("int getpagesize()"),
    linkat: declare("int linkat(int fromFd, const char *from, int toFd, const char *to, int flags)"),
    madvise: declare("int madvise(void *address, size_t length, int advice)"),
    fstatfs: declare("int fstatfs(int fd, void *status)"),
    socket: declare("int socket(int family, int type, int protocol)"),
    sendto: declare(
      "int64_t sendto(int fd, void *data, size_t length, int flags, void *address, unsigned int addressLength)",
    ),
    setsockopt: declare("int setsockopt(int fd, int level, int name, void *value, unsigned int valueLength)"),
    _exit: declare("void _exit(int status)"),
  };
}

function int64s(...values: number[]): BigInt64Array {
  return BigInt64Array.from(values, BigInt);
}

/** struct flock: short l_type, l_whence (SEEK_SET); off_t l_start, l_len; pid_t l_pid, which OFD locks need 0. */
function flock(type: typeof F_RDLCK | typeof F_WRLCK | typeof F_UNLCK, offset: number, length: number): Buffer {
  const lock = Buffer.alloc(SIZEOF_FLOCK);
  lock.writeInt16LE(type, 0);
  lock.writeBigInt64LE(BigInt(offset), 8);
  lock.writeBigInt64LE(BigInt(length), 16);
  return lock;
}
