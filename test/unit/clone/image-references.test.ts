// What images refer to. The headers are made here by the formats' specifications; test/interop has those that qemu-img writes.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { type ImageReference, readReferences } from "../../../src/clone/image-references.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";

function image(content: Uint8Array, size = Math.max(content.length, 65536)): MemoryDevice {
  return new MemoryDevice({ size, name: "disk", content });
}

interface Qcow2 {
  version?: number;
  name?: string;
  nameOffset?: bigint;
  nameLength?: number;
  clusterBits?: number;
  encryption?: number;
  features?: bigint;
  headerLength?: number;
  extensions?: [type: number, text: string][];
}

function qcow2(options: Qcow2 = {}): Buffer {
  const { version = 3, name = "", clusterBits = 16, extensions = [], headerLength = 104 } = options;
  const bytes = Buffer.alloc(65536);
  bytes.write("QFI\xfb", "latin1");
  bytes.writeUInt32BE(version, 4);
  bytes.writeUInt32BE(clusterBits, 20);
  bytes.writeUInt32BE(options.encryption ?? 0, 32);
  bytes.writeBigUInt64BE(options.features ?? 0n, 72);
  bytes.writeUInt32BE(headerLength, 100);
  let offset = version === 2 ? 72 : headerLength;
  for (const [type, text] of extensions) {
    bytes.writeUInt32BE(type, offset);
    bytes.writeUInt32BE(Buffer.byteLength(text), offset + 4);
    offset += 8 + Math.ceil(bytes.write(text, offset + 8) / 8) * 8;
  }
  const at = offset + 8;
  if (name !== "") bytes.write(name, at);
  bytes.writeBigUInt64BE(options.nameOffset ?? (name === "" ? 0n : BigInt(at)), 8);
  bytes.writeUInt32BE(options.nameLength ?? Buffer.byteLength(name), 16);
  return bytes;
}

const BACKING_FORMAT = 0xe2792aca;
const DATA_FILE = 0x44415441;

describe("readReferences() of qcow2", () => {
  test.each<[string, Qcow2, ImageReference[]]>([
    ["none", {}, []],
    ["a backing file without a format", { name: "base.img" }, [{ role: "backing file", name: "base.img" }]],
    [
      "a backing file with one",
      { name: "/images/b ü.raw", extensions: [[BACKING_FORMAT, "raw"]] },
      [{ role: "backing file", name: "/images/b ü.raw", format: "raw" }],
    ],
    [
      "one of version 2, whose extensions begin earlier",
      { version: 2, name: "b", extensions: [[BACKING_FORMAT, "qcow2"]] },
      [{ role: "backing file", name: "b", format: "qcow2" }],
    ],
    ["a data file", { features: 4n, extensions: [[DATA_FILE, "d.raw"]] }, [{ role: "data file", name: "d.raw" }]],
    ["a data file that counts for nothing without its feature", { extensions: [[DATA_FILE, "d.raw"]] }, []],
    [
      "extensions behind the end of them",
      {
        extensions: [
          [0, ""],
          [BACKING_FORMAT, "raw"],
        ],
      },
      [],
    ],
    [
      "the last of two formats, as qemu does",
      {
        name: "b",
        extensions: [
          [BACKING_FORMAT, "qcow2"],
          [BACKING_FORMAT, "raw"],
        ],
      },
      [{ role: "backing file", name: "b", format: "raw" }],
    ],
  ])("finds %s", async (_, header, references) => {
    expect(await readReferences(image(qcow2(header)), "qcow2")).toEqual(references);
  });

  test.each<[string, Qcow2, string]>([
    ["a name behind the first cluster", { nameOffset: 65530n, nameLength: 100 }, "out of bounds"],
    ["a name at an absurd offset", { nameOffset: 2n ** 63n, nameLength: 10 }, "out of bounds"],
    ["a name that is too long", { nameOffset: 200n, nameLength: 1024 }, "out of bounds"],
    ["clusters that are too large", { clusterBits: 40 }, "clusters"],
    ["clusters that are too small", { clusterBits: 0 }, "clusters"],
    ["encryption", { encryption: 2 }, "encrypted"],
    ["a data file without a name", { features: 4n }, "does not name"],
    ["another version", { version: 4 }, "no such header"],
  ])("refuses %s", async (_, header, why) => {
    const failure = readReferences(image(qcow2(header)), "qcow2");
    await expect(failure).rejects.toThrow(CloneError);
    await expect(failure).rejects.toThrow(why);
  });

  test("an extension that says it is longer than the header is refused", async () => {
    const bytes = qcow2();
    bytes.writeUInt32BE(BACKING_FORMAT, 104);
    bytes.writeUInt32BE(2 ** 32 - 1, 108);
    await expect(readReferences(image(bytes), "qcow2")).rejects.toThrow("too long");
  });
});

test("readReferences() of qcow and qed finds backing files", async () => {
  const qcow = Buffer.alloc(512);
  qcow.write("QFI\xfb\0\0\0\x01", "latin1");
  qcow.writeBigUInt64BE(48n, 8);
  qcow.writeUInt32BE(4, 16);
  qcow.write("base", 48);
  expect(await readReferences(image(qcow), "qcow")).toEqual([{ role: "backing file", name: "base" }]);

  const qed = Buffer.alloc(512);
  qed.write("QED\0");
  qed.writeUInt32LE(64, 56);
  qed.writeUInt32LE(4, 60);
  qed.write("base", 64);
  expect(await readReferences(image(qed), "qed")).toEqual([]);
  qed.writeBigUInt64LE(1n, 16);
  expect(await readReferences(image(qed), "qed")).toEqual([{ role: "backing file", name: "base" }]);
  qed.writeBigUInt64LE(5n, 16);
  expect(await readReferences(image(qed), "qed")).toEqual([{ role: "backing file", name: "base", format: "raw" }]);
});

describe("readReferences() of vmdk", () => {
  const names = async (content: Buffer): Promise<string[]> =>
    (await readReferences(image(content), "vmdk")).map(({ name }) => name);

  /** A sparse VMDK with a descriptor within. */
  function sparse({ capacity = 2048n, descriptor = "" } = {}): Buffer {
    const bytes = Buffer.alloc(65536);
    bytes.write("KDMV");
    bytes.writeBigUInt64LE(capacity, 12);
    bytes.writeBigUInt64LE(1n, 28);
    bytes.writeBigUInt64LE(20n, 36);
    bytes.write(descriptor, 512);
    return bytes;
  }

  test("the extents and the parent that a descriptor names", async () => {
    const text =
      '# Disk DescriptorFile\nRW 100 FLAT "a-flat.vmdk" 0\nRW 1 SPARSE "b s001.vmdk"\nparentFileNameHint="p.vmdk"\n';
    expect(await names(Buffer.from(text))).toEqual(["a-flat.vmdk", "b s001.vmdk", "p.vmdk"]);
  });

  test.each([
    '# Disk DescriptorFile\nRW\n100\nFLAT\n"/etc/shadow"\n',
    '# Disk DescriptorFile\n  RW\t+100FLAT"/etc/shadow" 0\n',
    '# Disk DescriptorFile\rRW\r100 VMFSSPARSE"/etc/shadow"',
    `# Disk DescriptorFile\n${" ".repeat(100_000)}RW 1 FLAT "/etc/shadow"`,
  ])("however an extent is written: %j", async (text) =>
    expect(await names(Buffer.from(text))).toEqual(["/etc/shadow"]),
  );

  test("a sparse one has extents only where it has no capacity of its own, and a parent in any case", async () => {
    const descriptor = 'RW 2048 SPARSE "/etc/shadow"\n';
    expect(await names(sparse({ descriptor }))).toEqual([]);
    expect(await names(sparse({ descriptor, capacity: 0n }))).toEqual(["/etc/shadow"]);
    expect(await names(sparse({ descriptor: 'parentFileNameHint="p"' }))).toEqual(["p"]);
    expect(await names(sparse({ descriptor: 'parentFileNameHint:;/etc/shadow"' }))).toEqual(["/etc/shadow"]);
    await expect(names(sparse({ capacity: 0n }))).rejects.toThrow("names no extents");
  });
});

test("readReferences() of any bytes ends, with references or a CloneError", async () => {
  const heads = [
    "QFI\xfb\0\0\0\x01",
    "QFI\xfb\0\0\0\x02",
    "QFI\xfb\0\0\0\x03",
    "QED\0\x01",
    "KDMV",
    "COWD",
    "# Disk DescriptorFile\n",
  ];
  const bytes = fc.tuple(fc.constantFrom(...heads), fc.uint8Array({ minLength: 500, maxLength: 3000 }));
  await fc.assert(
    fc.asyncProperty(bytes, fc.constantFrom("qcow", "qcow2", "qed", "vmdk", "vdi"), async ([head, rest], format) => {
      const content = Buffer.concat([Buffer.from(head, "latin1"), rest]);
      await readReferences(image(content, content.length), format).catch((error: unknown) => {
        expect(error).toBeInstanceOf(CloneError);
      });
    }),
    { numRuns: 300 },
  );
});

test("A VMDK whose descriptor lies behind its end is refused (fuzz, seed 11, message 155 of image-headers)", async () => {
  const bytes = Buffer.alloc(1024);
  bytes.write("KDMV");
  bytes.writeBigUInt64LE(256n, 28);
  await expect(readReferences(image(bytes, 1024), "vmdk")).rejects.toThrow(
    new CloneError("failed", 'Cannot open "disk" as vmdk: a part of its header lies behind its end'),
  );
});
