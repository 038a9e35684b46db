import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { expect, test } from "vitest";
import { BusyError } from "../../../src/base/errors.ts";
import { FileDevice } from "../../../src/device/file-device.ts";
import { acquireLock, hasOfdLock, LOCK_OFFSET, lockHolder } from "../../../src/device/lock.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const RW = { access: "read-write" } as const;
const RO = { access: "read-only" } as const;

/** Takes the lock as the documentation of the lock says, in a process of its own, and keeps it until it is killed. */
const CHILD = `
  const koffi = require(${JSON.stringify(createRequire(import.meta.url).resolve("koffi"))});
  const fcntl = koffi.load(null).func("int fcntl(int fd, int command, void *argument)");
  const lock = Buffer.alloc(32); // struct flock: l_type F_WRLCK, l_whence SEEK_SET, l_start, l_len
  lock.writeInt16LE(1, 0);
  lock.writeBigInt64LE(9007199254740990n, 8);
  lock.writeBigInt64LE(1n, 16);
  const fd = require("node:fs").openSync(process.argv[1], "r+");
  process.stdout.write(fcntl(fd, 37, lock) === 0 ? "locked" : "refused");
  setInterval(() => {}, 1000);
`;

async function lockInChild(path: string): Promise<{ child: ChildProcess & Disposable; answer: string }> {
  const child = spawn(process.execPath, ["-e", CHILD, path], { stdio: ["ignore", "pipe", "inherit"] });
  const [answer] = await once(child.stdout, "data");
  return {
    child: Object.assign(child, { [Symbol.dispose]: () => void child.kill("SIGKILL") }),
    answer: String(answer),
  };
}

async function scratchFile() {
  const directory = await scratchDirectory();
  const path = join(directory.path, "disk");
  await writeFile(path, Buffer.alloc(4096));
  return { path, [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose]() };
}

test("acquireLock() names the process that has it, and succeeds once that was killed", async () => {
  await using file = await scratchFile();
  await using device = await FileDevice.open(file.path, RW);
  const { child, answer } = await lockInChild(file.path);
  using _ = child;
  expect(answer).toBe("locked");
  const error = await acquireLock(device).catch((caught) => caught);
  expect(error).toBeInstanceOf(BusyError);
  expect(error.pid).toBe(child.pid);
  expect(error.message).toBe(`Cannot lock "${file.path}": it is in use by process ${child.pid} (node)`);
  child.kill("SIGKILL");
  await once(child, "exit");
  using _lock = await acquireLock(device);
});

test("acquireLock() keeps another process out until it is released", async () => {
  await using file = await scratchFile();
  await using device = await FileDevice.open(file.path, RW);
  const lock = await acquireLock(device);
  const second = await lockInChild(file.path);
  second.child.kill("SIGKILL");
  expect(second.answer).toBe("refused");
  lock.release();
  const third = await lockInChild(file.path);
  third.child.kill("SIGKILL");
  expect(third.answer).toBe("locked");
});

test("acquireLock() keeps a second device of this process out too", async () => {
  await using file = await scratchFile();
  await using first = await FileDevice.open(file.path, RW);
  await using second = await FileDevice.open(file.path, RW);
  const lock = await acquireLock(first);
  const error = await acquireLock(second).catch((caught) => caught);
  expect(error).toMatchObject({ code: "busy", pid: process.pid });
  expect(error.message).toContain("in use by this process");
  lock.release();
  using _ = await acquireLock(second);
});

test("a Lock survives that other descriptors of the file are closed, and its own device", async () => {
  await using file = await scratchFile();
  const device = await FileDevice.open(file.path, RW);
  await using other = await FileDevice.open(file.path, RW);
  const lock = await acquireLock(device);
  await (await FileDevice.open(file.path, RW))[Symbol.asyncDispose](); // would end a POSIX lock
  expect(await lockHolder(other)).toMatchObject({ pid: process.pid });
  await device[Symbol.asyncDispose]();
  expect(await lockHolder(other)).toMatchObject({ pid: process.pid });
  lock.release();
  lock.release();
  expect(await lockHolder(other)).toBeUndefined();
});

test("acquireLock() that failed leaves nothing locked and nothing open", async () => {
  await using file = await scratchFile();
  await using first = await FileDevice.open(file.path, RW);
  await using second = await FileDevice.open(file.path, RW);
  const lock = await acquireLock(first);
  await expect(acquireLock(second)).rejects.toThrow(BusyError);
  lock.release();
  expect(await lockHolder(first)).toBeUndefined();
});

test("lockHolder() asks without taking, on a file opened read-only, which cannot be locked itself", async () => {
  await using file = await scratchFile();
  await using reader = await FileDevice.open(file.path, RO);
  expect(await lockHolder(reader)).toBeUndefined();
  await expect(acquireLock(reader)).rejects.toThrow(TypeError);
  const { child } = await lockInChild(file.path);
  using _ = child;
  expect(await lockHolder(reader)).toEqual({ pid: child.pid, command: "node" });
});

test("lockHolder() is not misled by a process that has the same byte of another file", async () => {
  await using file = await scratchFile();
  await using another = await scratchFile();
  await using device = await FileDevice.open(file.path, RO);
  using bystander = (await lockInChild(another.path)).child;
  using holder = (await lockInChild(file.path)).child;
  expect(bystander.pid).not.toBe(holder.pid);
  expect((await lockHolder(device))?.pid).toBe(holder.pid);
});

test("hasOfdLock() finds the lines of OFD locks that cover a byte", () => {
  const info = (lines: string) => `pos:\t0\nflags:\t02\nmnt_id:\t29\nino:\t1234\n${lines}`;
  const at = `${LOCK_OFFSET} ${LOCK_OFFSET}`;
  expect(hasOfdLock(info(`lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 ${at}\n`), LOCK_OFFSET)).toBe(true);
  expect(hasOfdLock(info("lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1234 100 101\n"), 101)).toBe(true);
  expect(hasOfdLock(info("lock:\t2: OFDLCK  ADVISORY  READ  -1 fe:00:1234 7 EOF\n"), LOCK_OFFSET)).toBe(true);
  expect(hasOfdLock(info("lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:1234 100 101\n"), 102)).toBe(false);
  expect(hasOfdLock(info(`lock:\t1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 ${at}\n`), LOCK_OFFSET)).toBe(false);
  expect(hasOfdLock(info("lock:\t1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF\n"), LOCK_OFFSET)).toBe(false);
  expect(hasOfdLock(info(""), LOCK_OFFSET)).toBe(false);
});
