import { open, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { errnoOf } from "../../../src/base/errors.ts";
import { alignedBuffer, isAligned } from "../../../src/device/aligned-buffer.ts";
import {
  blockDeviceGeometry,
  copyFileRange,
  FADV_SEQUENTIAL,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  fadvise,
  fallocate,
  SEEK_DATA,
  SEEK_HOLE,
  seek,
} from "../../../src/device/libc.ts";
import { SyscallError, systemErrno } from "../../../src/device/syscall.ts";
import { scratchDirectory } from "../../support/scratch.ts";

test("an asynchronous call reports its own errno, however many fail otherwise at the same time", async () => {
  await using scratch = await scratchDirectory();
  await using file = await open(join(scratch.path, "file"), "w+");
  const calls = Array.from({ length: 300 }, (_, index) => {
    if (index % 3 === 0) return fallocate(-1, 0, 0, 4096); // no such descriptor
    if (index % 3 === 1) return fallocate(file.fd, 0, 0, -1); // no such length
    return fallocate(file.fd, FALLOC_PUNCH_HOLE, 0, 4096); // without KEEP_SIZE
  });
  const results = await Promise.allSettled(calls);
  const errnos = results.map((result) => (result.status === "rejected" ? errnoOf(result.reason) : "none"));
  expect(errnos).toEqual(calls.map((_, index) => ["EBADF", "EINVAL", "EOPNOTSUPP"][index % 3]));
});

test("offsets beyond 4 GiB arrive at the kernel whole", async () => {
  await using scratch = await scratchDirectory();
  const path = join(scratch.path, "file");
  await using file = await open(path, "w+");
  const offset = 5 * 2 ** 40;
  await file.truncate(offset + 8192);
  await fallocate(file.fd, 0, offset, 4096);
  expect((await stat(path)).blocks).toBeGreaterThanOrEqual(8);
  await file.write(Buffer.alloc(4096, 1), 0, 4096, offset);
  expect(await seek(file.fd, 0, SEEK_DATA)).toBe(offset);
  expect(await seek(file.fd, offset, SEEK_HOLE)).toBe(offset + 4096);
  await expect(seek(file.fd, offset + 4096, SEEK_DATA)).rejects.toMatchObject({ code: "ENXIO" });
  await fallocate(file.fd, FALLOC_PUNCH_HOLE + FALLOC_KEEP_SIZE, offset, 4096);
  await expect(seek(file.fd, 0, SEEK_DATA)).rejects.toThrow(SyscallError);
});

test("copyFileRange() copies at the offsets it is given, and ends with the source", async () => {
  await using scratch = await scratchDirectory();
  const [from, to] = [join(scratch.path, "from"), join(scratch.path, "to")];
  await writeFile(from, "0123456789");
  await writeFile(to, "..........");
  await using source = await open(from, "r");
  await using destination = await open(to, "r+");
  const fds = { fromFd: source.fd, toFd: destination.fd };
  expect(await copyFileRange({ ...fds, fromOffset: 7, toOffset: 2, length: 100 })).toBe(3);
  expect(await copyFileRange({ ...fds, fromOffset: 10, toOffset: 2, length: 100 })).toBe(0);
  await fadvise(source.fd, 0, 10, FADV_SEQUENTIAL);
  expect(await readFile(to, "utf8")).toBe("..789.....");
});

test("fadvise() reports the errno that it returns instead of setting", async () => {
  await expect(fadvise(-1, 0, 0, FADV_SEQUENTIAL)).rejects.toMatchObject({ code: "EBADF" });
});

test("a synchronous call reports its errno", async () => {
  await using scratch = await scratchDirectory();
  await using file = await open(join(scratch.path, "file"), "w+");
  expect(() => blockDeviceGeometry(file.fd)).toThrow(expect.objectContaining({ code: "ENOTTY" }));
});

test("systemErrno() knows what libuv has no name for", () => {
  const error = Object.assign(new Error("damaged"), { code: "Unknown system error -117", errno: -117 });
  expect(systemErrno(error)).toBe("EUCLEAN");
  expect(systemErrno(Object.assign(new Error("?"), { errno: -4000 }))).toBe("E4000");
  expect(systemErrno(new SyscallError("call", 5))).toBe("EIO");
  expect(systemErrno(new Error("no system's"))).toBeUndefined();
  expect(systemErrno("EIO")).toBeUndefined();
});

test.each([1, 512, 4096, 65536, 2 ** 21])("alignedBuffer() lies at a multiple of %i, and is zero", (alignment) => {
  for (const byteLength of [0, 1, 512, 4096, 100_001]) {
    const buffer = alignedBuffer(byteLength, alignment);
    expect(buffer.length).toBe(byteLength);
    expect(buffer.every((byte) => byte === 0)).toBe(true);
    if (byteLength > 0) expect(isAligned(buffer, alignment)).toBe(true);
  }
  expect(isAligned(alignedBuffer(8192, 4096).subarray(1), 4096)).toBe(false);
});

test("alignedBuffer() refuses an alignment that is no power of two", () => {
  for (const alignment of [0, 3, 1000, -4, 0.5]) expect(() => alignedBuffer(10, alignment)).toThrow(RangeError);
});
