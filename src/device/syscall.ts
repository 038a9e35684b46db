/**
 * Calling C from Node, through koffi. Loaded on first use: a command that only prints help pays nothing.
 *
 * How errno travels (koffi 3.2 and newer; checked with strace and with 200 calls failing in two ways at a time): the
 * call runs on a thread of libuv's pool, koffi saves that thread's errno right behind it, and puts it into the main
 * thread's errno around the callback. So the callback must read `koffi.errno()` before anything else, and so must the
 * statement after a synchronous call. Whether a call failed is told by its result alone; errno only says why.
 *
 * What may wait for a disk (fallocate, reflink, zeroing, SEEK_DATA in a long extent tree) runs asynchronously. It
 * shares the pool's threads (4, unless UV_THREADPOOL_SIZE says otherwise) with Node's own file operations. koffi holds
 * 256 KiB per queued call and refuses more than 256 of them, so at most `MAX_CALLS` are handed over at a time.
 *
 * Numbers and layouts are those of 64-bit Linux, where x64, arm64 and riscv64 agree, and glibc with musl: long and
 * off_t have 64 bits, and a variadic argument (ioctl, fcntl) is passed like a named one. Others are refused.
 */
import { createRequire } from "node:module";
import { constants } from "node:os";
import type Koffi from "koffi";
import type { KoffiFunc, LibraryHandle } from "koffi";
import { CloneError, errnoOf } from "../base/errors.ts";

/** Calls handed to koffi and not returned yet; the rest waits here. */
const MAX_CALLS = 32;

/** Why the kernel refused a call. `code` is the symbolic errno (`EINVAL`), as on the errors of `node:fs`. */
export class SyscallError extends Error {
  override readonly name = "SyscallError";
  readonly code: string;

  constructor(syscall: string, errno: number) {
    const code = errnoName(errno);
    super(`${syscall}: ${code}`);
    this.code = code;
  }
}

/** The C library this process runs on, glibc or musl. */
export interface CLibrary {
  readonly koffi: typeof Koffi;
  readonly library: LibraryHandle;
}

let loaded: CLibrary | undefined;

/** @throws {CloneError} where this is not 64-bit Linux, or koffi has no binary for it */
export function cLibrary(): CLibrary {
  loaded ??= load();
  return loaded;
}

function load(): CLibrary {
  if (process.platform !== "linux" || !["x64", "arm64", "riscv64", "loong64"].includes(process.arch)) {
    throw new CloneError("failed", `Cannot use files and block devices here: this needs 64-bit Linux`);
  }
  const koffi = requireKoffi();
  return { koffi, library: koffi.load(null) };
}

function requireKoffi(): typeof Koffi {
  try {
    return createRequire(import.meta.url)("koffi") as typeof Koffi;
  } catch (cause) {
    throw new CloneError("failed", `Cannot load koffi for ${process.platform}-${process.arch}: ${reason(cause)}`, {
      cause,
      hint: "Install the package again, with its optional dependencies",
    });
  }
}

function reason(cause: unknown): string {
  return cause instanceof Error ? (cause.message.split("\n")[0] ?? "") : String(cause);
}

/** A call that cannot wait. Its result is negative where it failed. @throws {SyscallError} */
export function call<A extends unknown[]>(name: string, func: KoffiFunc<(...args: A) => number>, ...args: A): number {
  const result = func(...args);
  if (result < 0) throw new SyscallError(name, cLibrary().koffi.errno());
  return result;
}

/**
 * A call on the thread pool, repeated where a signal interrupted it. The closure keeps the argument buffers alive.
 * @throws {SyscallError}
 */
export async function callAsync<A extends unknown[]>(
  name: string,
  func: KoffiFunc<(...args: A) => number>,
  ...args: A
): Promise<number> {
  const { koffi } = cLibrary();
  await enter();
  try {
    for (;;) {
      const { result, errno } = await new Promise<{ result: number; errno: number }>((resolve, reject) => {
        const done = (error: unknown, result: number) => {
          const errno = koffi.errno(); // first: see the head of this file
          if (error) reject(error);
          else resolve({ result, errno });
        };
        (func.async as (...all: unknown[]) => void)(...args, done);
      });
      if (result >= 0) return result;
      if (errno !== constants.errno.EINTR) throw new SyscallError(name, errno);
    }
  } finally {
    leave();
  }
}

let running = 0;
const waiting: (() => void)[] = [];

async function enter(): Promise<void> {
  if (running < MAX_CALLS) running += 1;
  else await new Promise<void>((resolve) => waiting.push(resolve)); // takes over the place of whoever leaves
}

function leave(): void {
  const next = waiting.shift();
  if (next) next();
  else running -= 1;
}

/** Symbolic name of an errno. Linux calls 95 both ENOTSUP and EOPNOTSUPP; as strace, we say EOPNOTSUPP. */
function errnoName(errno: number): string {
  if (errno === constants.errno.EOPNOTSUPP) return "EOPNOTSUPP";
  for (const [name, value] of Object.entries(constants.errno)) if (value === errno) return name;
  return UNNAMED[errno] ?? `E${errno}`;
}

/** What disks and file systems answer too, and neither Node nor libuv has a name for. */
const UNNAMED: Record<number, string> = {
  52: "EBADE",
  117: "EUCLEAN",
  121: "EREMOTEIO",
  123: "ENOMEDIUM",
  124: "EMEDIUMTYPE",
};

/**
 * The symbolic errno of anything caught, like `errnoOf`, and also of what libuv calls `Unknown system error -117`
 * (EUCLEAN, as ext4 and XFS say where they find themselves damaged).
 */
export function systemErrno(error: unknown): string | undefined {
  const errno = errnoOf(error);
  if (errno !== undefined || !(error instanceof Error)) return errno;
  return "errno" in error && typeof error.errno === "number" ? errnoName(Math.abs(error.errno)) : undefined;
}
