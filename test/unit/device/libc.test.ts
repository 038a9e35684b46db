import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, readdirSync } from "node:fs";
import { open, readFile, stat, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
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
  sendDatagram,
  wishSendBuffer,
} from "../../../src/device/libc.ts";
import { cLibrary, SyscallError, systemErrno } from "../../../src/device/syscall.ts";
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

test.each(["a path", "an abstract name"])("sendDatagram() sends one datagram to %s", async (where) => {
  await using scratch = await scratchDirectory();
  const path = where === "a path" ? join(scratch.path, "socket") : `@${scratch.path}`;
  using receiver = receiveDatagrams(path);
  sendDatagram(path, "READY=1\nSTATUS=größer");
  sendDatagram(path, "STOPPING=1");
  expect([receiver.receive(), receiver.receive()]).toEqual(["READY=1\nSTATUS=größer", "STOPPING=1"]);
});

test("sendDatagram() says why it could not, and keeps no descriptor", async () => {
  await using scratch = await scratchDirectory();
  const path = join(scratch.path, "socket");
  const before = readdirSync("/proc/self/fd").length;
  expect(() => sendDatagram(path, "x")).toThrow(expect.objectContaining({ code: "ENOENT" }));
  expect(() => sendDatagram(`/${"x".repeat(107)}`, "x")).toThrow(expect.objectContaining({ code: "ENAMETOOLONG" }));
  using _receiver = receiveDatagrams(path);
  const untilFull = () => {
    for (let count = 0; count < 100_000; count += 1) sendDatagram(path, "x".repeat(1000));
  };
  expect(untilFull).toThrow(expect.objectContaining({ code: "EAGAIN" }));
  expect(readdirSync("/proc/self/fd").length).toBe(before + 1);
});

test("wishSendBuffer() gives a unix socket as much as the system allows", async () => {
  await using scratch = await scratchDirectory();
  const server = createServer().listen(join(scratch.path, "socket"));
  await once(server, "listening");
  const client = connect(join(scratch.path, "socket"));
  await once(client, "connect");
  const { fd } = (client as unknown as { _handle: { fd: number } })._handle;
  wishSendBuffer(fd, 2 ** 21);
  const [value, length] = [new Int32Array(1), Int32Array.of(4)];
  const getsockopt = cLibrary().library.func("int getsockopt(int fd, int level, int name, void *value, void *length)");
  expect(getsockopt(fd, 1, 7, value, length)).toBe(0);
  const most = Number(await readFile("/proc/sys/net/core/wmem_max", "utf8"));
  expect(value[0]).toBe(2 * Math.min(2 ** 21, most)); // socket(7): doubled, for the kernel's own
  client.destroy();
  server.close();
});

test("exitNow() ends the process though a thread hangs for ever, which process.exit() waits for", async () => {
  await using scratch = await scratchDirectory();
  const pipe = join(scratch.path, "pipe");
  execFileSync("mkfifo", [pipe]); // opening it waits for a writer, on a thread of the pool
  const libc = new URL("../../../dist/device/libc.js", import.meta.url);
  const script = (exit: string) => `
    import { open } from "node:fs";
    import { exitNow } from "${libc.href}";
    open("${pipe}", "r", () => {});
    setTimeout(() => { console.log("now"); ${exit}(7); }, 50);`;
  const run = (exit: string) => spawn(process.execPath, ["--input-type=module", "--eval", script(exit)]);
  const [code] = await once(run("exitNow"), "exit");
  expect(code).toBe(7);

  const waiting = run("process.exit");
  const ended = once(waiting, "exit");
  await once(waiting.stdout, "data");
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(waiting.exitCode).toBe(null); // or exitNow() is needed no more
  waiting.kill("SIGKILL");
  await ended;
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

/** A unix datagram socket bound to a path (`@`: abstract). `receive` waits for nothing: what was sent is there. */
function receiveDatagrams(path: string): Disposable & { receive(): string } {
  const { library } = cLibrary();
  const socket = library.func("int socket(int family, int type, int protocol)");
  const bind = library.func("int bind(int fd, void *address, unsigned int length)");
  const recv = library.func("int64_t recv(int fd, void *buffer, size_t length, int flags)");
  const [AF_UNIX, SOCK_DGRAM, MSG_DONTWAIT] = [1, 2, 0x40];
  const fd: number = socket(AF_UNIX, SOCK_DGRAM, 0);
  const address = Buffer.concat([Buffer.from([AF_UNIX, 0]), Buffer.from(path.replace(/^@/, "\0"))]);
  expect(bind(fd, address, address.length)).toBe(0);
  return {
    receive() {
      const buffer = Buffer.alloc(4096);
      return buffer.toString("utf8", 0, recv(fd, buffer, buffer.length, MSG_DONTWAIT));
    },
    [Symbol.dispose]: () => closeSync(fd),
  };
}
