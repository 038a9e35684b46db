// Images as qemu-img makes them, opened through qemu-nbd: every format, chains of backing files, odd names, and what an image must
// not make us open.
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  mkdir,
  readdir,
  readFile,
  readlink,
  rename,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { BusyError, ChangedError, CloneError, DeviceError, UsageError } from "../../src/base/errors.ts";
import { detectImageFormat } from "../../src/clone/image-formats.ts";
import { type ImageRequest, openImage } from "../../src/clone/image-source.ts";
import { FileDevice } from "../../src/device/file-device.ts";
import { randomFile, sparseFile } from "../support/files.ts";
import { imageOf } from "../support/image.ts";
import { testWith } from "../support/needs.ts";
import { childrenNamed } from "../support/processes.ts";
import { eventually } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";

const QEMU = { programs: ["qemu-img", "qemu-nbd"] } as const;
const MIB = 2 ** 20;

/** The content of an image, all of it read through openImage(). */
async function contentOf(request: ImageRequest): Promise<Buffer> {
  await using image = await openImage(request);
  return await imageOf(image);
}

async function failure(request: ImageRequest): Promise<CloneError> {
  const error = await openImage(request).then(
    async (image) => {
      await image[Symbol.asyncDispose]();
      return expect.fail("it was opened");
    },
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(CloneError);
  return error as CloneError;
}

async function detected(path: string): Promise<string | undefined> {
  await using device = await FileDevice.open(path, { access: "read-only" });
  return await detectImageFormat(device);
}

/** A directory with `disk.raw`: data, holes, and a size that is no multiple of much. */
async function withDisk() {
  const directory = await scratchDirectory();
  const raw = join(directory.path, "disk.raw");
  const content = await sparseFile(raw, 9 * MIB + 512 * 1024, [
    [0, 4096],
    [MIB + 512, 70_000],
    [5 * MIB, 2 * MIB],
    [9 * MIB + 512 * 1024 - 512, 512],
  ]);
  const path = (name: string): string => join(directory.path, name);
  const convert = (name: string, ...options: string[]): Promise<string> =>
    run("qemu-img", "convert", "-f", "raw", ...options, raw, path(name));
  return { path, convert, content, raw, [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose]() };
}

describe("openImage() of a local file", () => {
  for (const [format, options, tail = 0] of [
    ["qcow2", ["-O", "qcow2"]],
    ["qcow2", ["-O", "qcow2", "-c", "-o", "cluster_size=2M"]],
    ["qcow2", ["-O", "qcow2", "-o", "compat=0.10,cluster_size=512"]],
    ["qcow", ["-O", "qcow"]],
    ["vmdk", ["-O", "vmdk"]],
    ["vmdk", ["-O", "vmdk", "-o", "subformat=streamOptimized"]],
    ["vhdx", ["-O", "vhdx"]],
    ["vpc", ["-O", "vpc", "-o", "force_size=on"]],
    ["vpc", ["-O", "vpc", "-o", "subformat=fixed,force_size=on"]],
    ["vdi", ["-O", "vdi"]],
    ["vdi", ["-O", "vdi", "-o", "static=on"]],
    ["qed", ["-O", "qed"]],
    ["parallels", ["-O", "parallels"], MIB],
  ] as const) {
    testWith(QEMU, `${format} made by qemu-img ${options.join(" ")} is recognised and read whole`, async () => {
      await using disk = await withDisk();
      await disk.convert("image", ...options);
      expect(await detected(disk.path("image"))).toBe(format);
      const before = await stat(disk.path("image"));
      const found = await contentOf({ kind: "file", path: disk.path("image"), format });
      // parallels counts in whole clusters
      expect(found.length - disk.content.length).toBeLessThanOrEqual(tail);
      expect(Buffer.compare(found.subarray(0, disk.content.length), disk.content)).toBe(0);
      expect(found.subarray(disk.content.length).some((byte) => byte !== 0)).toBe(false);
      expect(await stat(disk.path("image"))).toMatchObject({ mtimeMs: before.mtimeMs, size: before.size });
    });
  }

  testWith(QEMU, "holes of an image are told as such", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    await using image = await openImage({ kind: "file", path: disk.path("image.qcow2"), format: "qcow2" });
    expect(image).toMatchObject({ name: disk.path("image.qcow2"), readOnly: true, size: disk.content.length });
    const extents = await image.extents(0, image.size);
    const zeros = extents.filter(({ zero }) => zero).reduce((sum, { length }) => sum + length, 0);
    expect(zeros).toBeGreaterThan(6 * MIB);
    for (const { offset, length, zero } of extents) {
      if (zero) expect(disk.content.subarray(offset, offset + length).some((byte) => byte !== 0)).toBe(false);
    }
  });

  const names = [
    "-leading",
    "--help",
    "a:b.qcow2",
    "nbd:unix:x",
    "json:{}",
    "a,b=c",
    "with space",
    "new\nline",
    "quote\"'",
    "ü%20",
    "$HOME",
  ];
  for (const name of names) {
    testWith(
      QEMU,
      `a file named ${JSON.stringify(name)} is that file and no option, protocol or other file`,
      async () => {
        await using disk = await withDisk();
        await disk.convert("image.qcow2", "-O", "qcow2");
        await mkdir(disk.path("d"));
        await symlink(disk.path("image.qcow2"), join(disk.path("d"), name));
        const found = await contentOf({ kind: "file", path: join(disk.path("d"), name), format: "qcow2" });
        expect(Buffer.compare(found, disk.content)).toBe(0);
      },
    );
  }

  testWith(QEMU, "qemu-nbd opens it for reading only", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    await using _ = await openImage({ kind: "file", path: disk.path("image.qcow2"), format: "qcow2" });
    const [pid] = await childrenNamed("qemu-nbd");
    const flags = await openFlags(pid as number, disk.path("image.qcow2"));
    expect(flags.length).toBeGreaterThan(0);
    for (const flag of flags) expect(Number.parseInt(flag, 8) % 4).toBe(0); // O_RDONLY
  });

  testWith(
    QEMU,
    "what is no image of that format is told so, in qemu's words, and nothing is left running",
    async () => {
      await using disk = await withDisk();
      await randomFile(disk.path("rubbish"), 100_000);
      expect((await failure({ kind: "file", path: disk.path("rubbish"), format: "vdi" })).message).toMatch(
        /^Cannot open ".*rubbish": qemu-nbd ended with status 1: .*VDI/,
      );
      expect((await failure({ kind: "file", path: disk.path("rubbish"), format: "qcow2" })).message).toContain(
        "no such header",
      );
      expect(await failure({ kind: "file", path: disk.path("missing"), format: "qcow2" })).toMatchObject({
        errno: "ENOENT",
      });
      expect(await failure({ kind: "file", path: disk.path("rubbish"), format: "nosuch" })).toBeInstanceOf(UsageError);
      expect(await childrenNamed("qemu-nbd")).toEqual([]);
    },
  );

  testWith(QEMU, "an image that a virtual machine writes to is in use", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    const socket = disk.path("s");
    const writer = spawn("qemu-nbd", ["-t", "-k", socket, "-f", "qcow2", disk.path("image.qcow2")], {
      stdio: "ignore",
    });
    try {
      await eventually(
        "it is open",
        async () =>
          await stat(socket).then(
            () => true,
            () => false,
          ),
      );
      const error = await failure({ kind: "file", path: disk.path("image.qcow2"), format: "qcow2" });
      expect(error).toBeInstanceOf(BusyError);
      expect(error.hint).toContain("virtual machine");
    } finally {
      writer.kill("SIGKILL");
      await once(writer, "exit");
    }
  });
});

describe("openImage() of an image that refers to other files", () => {
  /** base.raw ◄ middle.qcow2 ◄ top.qcow2, and what the top shows. */
  async function withChain(...options: string[]) {
    const disk = await withDisk();
    await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.raw, "-F", "raw", disk.path("middle.qcow2"));
    await run(
      "qemu-img",
      "create",
      "-q",
      "-f",
      "qcow2",
      "-b",
      "middle.qcow2",
      "-F",
      "qcow2",
      ...options,
      disk.path("top.qcow2"),
    );
    const script = ["-c", "write -P 0xab 1M 1M", disk.path("middle.qcow2")];
    await run("qemu-io", "-f", "qcow2", ...script);
    await run("qemu-io", "-f", "qcow2", "-c", "write -P 0xcd 1536K 1M", disk.path("top.qcow2"));
    const content = Buffer.from(disk.content);
    content.fill(0xab, MIB, 2 * MIB).fill(0xcd, 1.5 * MIB, 2.5 * MIB);
    return { ...disk, content };
  }

  testWith(
    QEMU,
    "the whole chain is shown where the user has named the format, and every file of it is told",
    async () => {
      await using disk = await withChain();
      const notes: string[] = [];
      const request = { kind: "file", path: disk.path("top.qcow2"), format: "qcow2", isGiven: true } as const;
      await using image = await openImage(request, { onDetail: (line) => notes.push(line) });
      expect(Buffer.compare(await imageOf(image), disk.content)).toBe(0);
      expect(notes).toEqual([
        `"${disk.path("top.qcow2")}" is read together with "${disk.path("middle.qcow2")}"`,
        `"${disk.path("top.qcow2")}" is read together with "${disk.path("disk.raw")}"`,
      ]);
    },
  );

  testWith(QEMU, "where its format was only recognised it is refused, with how to say that it is meant", async () => {
    await using disk = await withChain();
    const error = await failure({ kind: "file", path: disk.path("top.qcow2"), format: "qcow2" });
    expect(error.message).toBe(`Cannot open "${disk.path("top.qcow2")}": it refers to the backing file "middle.qcow2"`);
    expect(error.hint).toContain("--source-format qcow2");
  });

  testWith(QEMU, "a base without a format is raw where it looks so, and refused where it refers to more", async () => {
    await using disk = await withChain();
    const open = (name: string) => ({ kind: "file", path: disk.path(name), format: "qcow2", isGiven: true }) as const;
    // as images from before qemu 6.1 have it
    await run(
      "qemu-img",
      "create",
      "-q",
      "-u",
      "-f",
      "qcow2",
      "-b",
      disk.raw,
      "-F",
      "raw",
      disk.path("old.qcow2"),
      "9961472",
    );
    await forgetFormat(disk.path("old.qcow2"));
    const raw = Buffer.alloc(disk.content.length);
    (await readFile(disk.raw)).copy(raw);
    expect(Buffer.compare(await contentOf(open("old.qcow2")), raw)).toBe(0);
    await forgetFormat(disk.path("top.qcow2"));
    const error = await failure(open("top.qcow2"));
    expect(error.message).toContain("refers to the backing file");
    expect(error.hint).toContain("qemu-img rebase -u -F qcow2");
  });

  testWith(QEMU, "a data file of its own is followed and refused in the same way", async () => {
    await using disk = await withDisk();
    const options = ["-O", "qcow2", "-o", `data_file=${disk.path("data.raw")},data_file_raw=on`];
    await disk.convert("image.qcow2", ...options);
    const request = { kind: "file", path: disk.path("image.qcow2"), format: "qcow2" } as const;
    expect((await failure(request)).message).toContain(`refers to the data file "${disk.path("data.raw")}"`);
    expect(Buffer.compare(await contentOf({ ...request, isGiven: true }), disk.content)).toBe(0);
  });

  for (const subformat of ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]) {
    testWith(QEMU, `a VMDK in parts (${subformat}) is followed and refused in the same way`, async () => {
      await using disk = await withDisk();
      await disk.convert("image.vmdk", "-O", "vmdk", "-o", `subformat=${subformat}`);
      expect(await detected(disk.path("image.vmdk"))).toBe("vmdk");
      const request = { kind: "file", path: disk.path("image.vmdk"), format: "vmdk" } as const;
      expect((await failure(request)).message).toMatch(/refers to the extent "image-[a-z0-9]+\.vmdk"/);
      expect(Buffer.compare(await contentOf({ ...request, isGiven: true }), disk.content)).toBe(0);
    });
  }

  testWith(QEMU, "a chain that bites its tail is refused, and so is a name that is no file", async () => {
    await using disk = await withDisk();
    const create = (name: string, backing: string): Promise<string> =>
      run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", disk.path(name), "1M");
    await create("a.qcow2", "b.qcow2");
    await create("b.qcow2", "a.qcow2");
    const open = (name: string) => failure({ kind: "file", path: disk.path(name), format: "qcow2", isGiven: true });
    expect((await open("a.qcow2")).message).toContain("refers to itself");
    for (const name of ["nbd://inner.example/", 'json:{"driver":"null-co"}', "ssh://host/x"]) {
      await create("c.qcow2", name);
      expect((await open("c.qcow2")).message).toContain(`its backing file "${name}" is no file`);
    }
    await create("c.qcow2", disk.path("missing.qcow2"));
    expect(await open("c.qcow2")).toMatchObject({ errno: "ENOENT" });
  });

  testWith(QEMU, "a guest that writes a header into its raw disk gets nobody to open a file of the host", async () => {
    await using disk = await withDisk();
    const secret = disk.path("secret");
    await writeFile(secret, "S3cr3t".repeat(1000));
    const guest = disk.path("guest.raw");
    await run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", secret, "-F", "raw", guest, "1M");
    await truncate(guest, 4 * MIB);
    expect(await detected(guest)).toBe("qcow2");
    expect((await failure({ kind: "file", path: guest, format: "qcow2" })).message).toContain(
      "refers to the backing file",
    );
  });
});

describe("openImage() of an image in a device of ours", () => {
  testWith(QEMU, "reads it through us, whatever the format", async () => {
    await using disk = await withDisk();
    for (const format of ["qcow2", "vmdk", "vhdx", "vdi"]) {
      await disk.convert(`image.${format}`, "-O", format);
      await using device = await FileDevice.open(disk.path(`image.${format}`), { access: "read-only" });
      const found = await contentOf({ kind: "device", device, format });
      expect(Buffer.compare(found, disk.content)).toBe(0);
    }
  });

  testWith(QEMU, "what it refers to is not opened, even where the format is named", async () => {
    await using disk = await withDisk();
    await run(
      "qemu-img",
      "create",
      "-q",
      "-u",
      "-f",
      "qcow2",
      "-b",
      disk.raw,
      "-F",
      "raw",
      disk.path("top.qcow2"),
      "9M",
    );
    await using device = await FileDevice.open(disk.path("top.qcow2"), { access: "read-only" });
    const error = await failure({ kind: "device", device, format: "qcow2", isGiven: true });
    expect(error.message).toContain("refers to the backing file");
  });

  for (const [when, isEvil] of [
    ["is another one at the first look only", (look) => look === 0],
    ["becomes another one after the first look", (look) => look >= 1],
    ["becomes another one after the second look", (look) => look >= 2],
  ] as const satisfies [string, (look: number) => boolean][]) {
    testWith(QEMU, `a header that ${when} opens nothing`, async () => {
      await using disk = await withDisk();
      await disk.convert("plain.qcow2", "-O", "qcow2");
      await disk.convert("data.qcow2", "-O", "qcow2", "-o", `data_file=${disk.raw}.d,data_file_raw=on`);
      await using device = await FileDevice.open(disk.path("plain.qcow2"), { access: "read-only" });
      const evil = await readFile(disk.path("data.qcow2"));
      let looks = 0;
      const changing = new Proxy(device, {
        get(target, name) {
          if (name === "tryRead") return () => false;
          if (name !== "read") {
            const value = Reflect.get(target, name, target);
            return typeof value === "function" ? value.bind(target) : value;
          }
          return async (offset: number, buffer: Uint8Array) => {
            await target.read(offset, buffer);
            if (isEvil(looks++)) buffer.set(evil.subarray(offset, offset + buffer.length));
          };
        },
      });
      await openImage({ kind: "device", device: changing, format: "qcow2" }).then(
        async (image) => {
          const [pid] = await childrenNamed("qemu-nbd");
          const opened = await openFlags(pid as number, `${disk.raw}.d`);
          await image[Symbol.asyncDispose]();
          expect(opened).toEqual([]);
        },
        (error: unknown) => expect(error).toBeInstanceOf(DeviceError),
      );
      expect(looks).toBeGreaterThan(isEvil(0) ? 1 : 2);
    });
  }

  testWith(QEMU, "an error beneath is told as it was, not as qemu's", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    await using device = await FileDevice.open(disk.path("image.qcow2"), { access: "read-only" });
    let error: Error | undefined;
    const failing = new Proxy(device, {
      get(target, name) {
        if (name === "tryRead") return () => false;
        const value = Reflect.get(target, name, target);
        if (name !== "read") return typeof value === "function" ? value.bind(target) : value;
        return async (offset: number, buffer: Uint8Array) => {
          if (error !== undefined) throw error;
          await target.read(offset, buffer);
        };
      },
    });
    await using image = await openImage({ kind: "device", device: failing, format: "qcow2" });
    error = new DeviceError('Cannot read "s3://b/k": the bucket is gone', { errno: "ECONNREFUSED" });
    await expect(image.read(5 * MIB, new Uint8Array(MIB))).rejects.toMatchObject({
      message: error.message,
      away: true,
    });
    error = undefined;
    const bytes = new Uint8Array(MIB);
    await image.read(5 * MIB, bytes);
    expect(Buffer.compare(bytes, disk.content.subarray(5 * MIB, 6 * MIB))).toBe(0);
  });
});

describe("openImage() while qemu-nbd dies", () => {
  testWith(QEMU, "reads go on with another one, however often it is killed", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    const notes: string[] = [];
    await using image = await openImage(
      { kind: "file", path: disk.path("image.qcow2"), format: "qcow2" },
      { onNote: (line) => notes.push(line) },
    );
    const found = Buffer.alloc(image.size);
    const step = 128 * 1024;
    for (let offset = 0; offset < image.size; offset += step) {
      if (offset % (2 * MIB) === 0) process.kill((await childrenNamed("qemu-nbd"))[0] as number, "SIGKILL");
      await image.read(offset, found.subarray(offset, offset + step));
    }
    expect(Buffer.compare(found, disk.content)).toBe(0);
    expect(notes.filter((line) => line.includes("was ended by SIGKILL"))).toHaveLength(5);
    expect(image.incarnation).toBeGreaterThanOrEqual(1);
  });

  testWith(QEMU, "another image in its place is refused", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    await using image = await openImage({ kind: "file", path: disk.path("image.qcow2"), format: "qcow2" });
    await utimes(disk.path("image.qcow2"), 1, 1);
    process.kill((await childrenNamed("qemu-nbd"))[0] as number, "SIGKILL");
    await eventually("the change is told", () => image.changed !== undefined);
    await expect(image.read(0, new Uint8Array(512))).rejects.toThrow(ChangedError);
  });
});

describe("openImage() of a file that somebody exchanges while qemu-nbd starts", () => {
  /** A program in place of qemu-nbd, which does something before it becomes that, or changes what that is told. */
  async function withPrelude(disk: { path: (name: string) => string }, prelude: string, then = 'exec "$real" "$@"') {
    const real = (await run("sh", "-c", "command -v qemu-nbd")).trim();
    const { PATH: before } = process.env;
    await mkdir(disk.path("bin"));
    await writeFile(disk.path("bin/qemu-nbd"), `#!/bin/sh\nreal=${real}\n${prelude}\n${then}\n`, { mode: 0o755 });
    process.env.PATH = `${disk.path("bin")}:${before}`;
    return {
      [Symbol.dispose]: () => {
        process.env.PATH = before;
      },
    };
  }

  /** `plain.qcow2`, and `evil.qcow2`, whose data are in a file of somebody else. */
  async function withTwo() {
    const disk = await withDisk();
    await disk.convert("plain.qcow2", "-O", "qcow2");
    await disk.convert("evil.qcow2", "-O", "qcow2", "-o", `data_file=${disk.path("secret")},data_file_raw=on`);
    return Object.assign(disk, { request: { kind: "file", path: disk.path("plain.qcow2"), format: "qcow2" } as const });
  }

  testWith(QEMU, "by a rename, and back again, is refused", async () => {
    await using disk = await withTwo();
    // What qemu opens by the name in between: afterwards the name leads to what was looked at.
    const renamed = 'exec "$real" "$(printf %s "$*" | sed "s/.*json:/json:/; s/plain/evil/")"';
    using _ = await withPrelude(disk, "", renamed.replace('"$real"', '"$real" --read-only --persistent'));
    const error = await failure(disk.request);
    expect(error).toBeInstanceOf(ChangedError);
    expect(error.message).toMatch(/what it is read from was exchanged for ".*(?:evil\.qcow2|secret)"$/);
    expect(await childrenNamed("qemu-nbd")).toEqual([]);
  });

  testWith(QEMU, "in place is refused, before what the new header names is read", async () => {
    await using disk = await withTwo();
    const [plain, evil] = [disk.path("plain.qcow2"), disk.path("evil.qcow2")];
    using _ = await withPrelude(disk, `dd if=${evil} of=${plain} bs=64k count=1 conv=notrunc status=none`);
    const error = await failure(disk.request);
    expect(error).toBeInstanceOf(ChangedError);
    expect(error.message).toMatch(/was exchanged for ".*secret"$/);
  });

  testWith(QEMU, "in place, and back again with its old time, is refused", async () => {
    await using disk = await withTwo();
    const plain = disk.path("plain.qcow2");
    await run("touch", "-r", plain, disk.path("time"));
    using _ = await withPrelude(
      disk,
      `printf QFI | dd of=${plain} conv=notrunc status=none; touch -r ${disk.path("time")} ${plain}`,
    );
    expect((await failure(disk.request)).message).toMatch(/"[^"]*plain\.qcow2" has been changed$/);
  });

  testWith(QEMU, "for a program that is started again is refused by every read", async () => {
    await using disk = await withTwo();
    const [plain, evil, time] = [disk.path("plain.qcow2"), disk.path("evil.qcow2"), disk.path("time")];
    await run("touch", "-r", plain, time);
    await using image = await openImage(disk.request);
    const write = `dd if=${evil} of=${plain} bs=64k count=1 conv=notrunc status=none; touch -r ${time} ${plain}`;
    using _ = await withPrelude(disk, write);
    process.kill((await childrenNamed("qemu-nbd"))[0] as number, "SIGKILL");
    for (let read = 0; read < 2; read++) await expect(image.read(0, new Uint8Array(512))).rejects.toThrow(ChangedError);
    expect(image.changed).toContain("secret");
  });
});

describe("openImage() of a chain", () => {
  testWith(QEMU, "a file beneath that changes is told, now and to who opens it again", async () => {
    await using disk = await withDisk();
    await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk.raw, "-F", "raw", disk.path("top.qcow2"));
    const request = { kind: "file", path: disk.path("top.qcow2"), format: "qcow2", isGiven: true } as const;
    await using image = await openImage(request);
    expect(await image.change()).toBeUndefined();
    const { etag } = image.identity;
    expect(etag).toMatch(/^"[0-9a-f]{32}"$/);
    await using again = await openImage(request);
    expect(again.identity.etag).toBe(etag);
    await utimes(disk.raw, 1, 1);
    expect(await image.change()).toBe(`"${disk.raw}" has been changed`);
    await using changed = await openImage(request);
    expect(changed.identity.etag).not.toBe(etag);
  });

  testWith(QEMU, "and so is an extent of a VMDK; an image alone has no tag", async () => {
    await using disk = await withDisk();
    await disk.convert("image.vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat");
    await using image = await openImage({ kind: "file", path: disk.path("image.vmdk"), format: "vmdk", isGiven: true });
    expect(image.identity.etag).toBeDefined();
    await utimes(disk.path("image-flat.vmdk"), 1, 1);
    expect(await image.change()).toContain("image-flat.vmdk");
    await disk.convert("image.qcow2", "-O", "qcow2");
    await using alone = await openImage({ kind: "file", path: disk.path("image.qcow2"), format: "qcow2" });
    expect(alone.identity).toEqual({ kind: "nbd", size: alone.size });
  });

  testWith(QEMU, "while the file is away it is waited for, and read on when it is back", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    await using image = await openImage({ kind: "file", path: disk.path("image.qcow2"), format: "qcow2" });
    await rename(disk.path("image.qcow2"), disk.path("aside"));
    process.kill((await childrenNamed("qemu-nbd"))[0] as number, "SIGKILL");
    const bytes = Buffer.alloc(MIB);
    const reading = image.read(5 * MIB, bytes);
    await eventually("qemu-nbd has ended", async () => (await childrenNamed("qemu-nbd")).length === 0);
    await rename(disk.path("aside"), disk.path("image.qcow2"));
    await reading;
    expect(Buffer.compare(bytes, disk.content.subarray(5 * MIB, 6 * MIB))).toBe(0);
    expect(image.changed).toBeUndefined();
  });
});

describe("openImage() of what qemu reaches", () => {
  testWith(QEMU, "json:{…} is opened as it is written", async () => {
    await using disk = await withDisk();
    await run(
      "qemu-img",
      "create",
      "-q",
      "-u",
      "-f",
      "qcow2",
      "-b",
      "nowhere",
      "-F",
      "raw",
      disk.path("top.qcow2"),
      "9961472",
    );
    const file = (filename: string) => ({ driver: "file", filename });
    const node = {
      driver: "qcow2",
      file: file(disk.path("top.qcow2")),
      backing: { driver: "raw", file: file(disk.raw) },
    };
    const filename = `json:${JSON.stringify(node)}`;
    expect(Buffer.compare(await contentOf({ kind: "qemu", filename, format: "raw" }), disk.content)).toBe(0);
  });

  testWith(
    QEMU,
    "a sector that cannot be read is an error of that sector, at once, though qemu-nbd hangs up first",
    async () => {
      await using disk = await withDisk();
      const bad = { event: "none", iotype: "read", errno: 5, sector: (5 * MIB) / 512 };
      const file = { driver: "blkdebug", image: { driver: "file", filename: disk.raw }, "inject-error": [bad] };
      const filename = `json:${JSON.stringify({ driver: "raw", file })}`;
      await using image = await openImage({ kind: "qemu", filename, format: "raw" });
      const read = async (offset: number): Promise<void> => {
        const bytes = new Uint8Array(65536);
        await image.read(offset, bytes);
        expect(Buffer.compare(bytes, disk.content.subarray(offset, offset + bytes.length))).toBe(0);
      };
      const failing = expect(read(5 * MIB)).rejects.toMatchObject({ errno: "EIO", away: false, offset: 5 * MIB });
      await Promise.all([failing, ...Array.from({ length: 30 }, (_, i) => read(5.5 * MIB + i * 4096))]);
      const { incarnation } = image;
      await expect(read(5 * MIB)).rejects.toMatchObject({ errno: "EIO", away: false });
      await read(4 * MIB);
      expect(image.incarnation).toBe(incarnation);
    },
  );

  testWith(
    QEMU,
    "a driver that is not installed is told by its package, one that there is not in qemu's words",
    async () => {
      const missing = await failure({ kind: "qemu", filename: 'json:{"driver":"nosuch"}', format: "raw" });
      expect(missing.message).toContain("nosuch");
      expect(missing.hint).toBeUndefined();
    },
  );

  testWith(QEMU, "a server that is not there is told by qemu", async () => {
    const error = await failure({ kind: "qemu", filename: "ssh://user@127.0.0.1:1/disk", format: "raw" });
    expect(error.message).toMatch(/^Cannot open "ssh:\/\/user@127\.0\.0\.1:1\/disk": qemu-nbd ended with status 1: /);
  });

  testWith(QEMU, "an image within is read through us, and what it refers to is not opened", async () => {
    await using disk = await withDisk();
    await disk.convert("image.qcow2", "-O", "qcow2");
    const request = { kind: "qemu", filename: `file:${disk.path("image.qcow2")}`, format: "raw" } as const;
    expect((await contentOf(request)).toString("latin1", 0, 4)).toBe("QFI\xfb");
    expect(Buffer.compare(await contentOf({ ...request, format: "qcow2" }), disk.content)).toBe(0);
    await run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", disk.raw, "-F", "raw", disk.path("image.qcow2"));
    expect((await failure({ ...request, format: "qcow2" })).message).toContain("refers to the backing file");
    expect(await childrenNamed("qemu-nbd")).toEqual([]);
  });

  test("a credential in it is refused before anything is started", async () => {
    const error = await failure({ kind: "qemu", filename: "rbd:pool/image:key=S3cr3t", format: "raw" });
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).not.toContain("S3cr3t");
  });
});

test("without qemu-nbd the message says which package has it", async () => {
  await using disk = await withEmptyPath();
  const error = await failure({ kind: "file", path: disk.image, format: "vdi" });
  expect(error.message).toBe(`Cannot open "${disk.image}": qemu-nbd is not installed`);
  expect(error.hint).toBe("Install the package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL).");
});

/** An image, and a PATH with nothing in it. */
async function withEmptyPath() {
  const directory = await scratchDirectory();
  const image = join(directory.path, "disk.vdi");
  await writeFile(image, Buffer.alloc(MIB));
  const { PATH: before } = process.env;
  process.env.PATH = directory.path;
  return {
    image,
    async [Symbol.asyncDispose]() {
      process.env.PATH = before;
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** Open flags (octal, as fdinfo has them) of every descriptor that a process has of a file. */
async function openFlags(pid: number, path: string): Promise<string[]> {
  const flags: string[] = [];
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => "");
    if (target !== path) continue;
    const info = await readFile(`/proc/${pid}/fdinfo/${fd}`, "utf8");
    flags.push(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? "");
  }
  return flags;
}

/** Makes a qcow2 image tell no format of its backing file: the extension becomes one that nobody knows. */
async function forgetFormat(path: string): Promise<void> {
  const bytes = await readFile(path);
  const at = bytes.indexOf(Buffer.from("e2792aca", "hex"));
  expect(at).toBeGreaterThan(0);
  bytes.writeUInt32BE(0x12345678, at);
  await writeFile(path, bytes);
}
