import { describe, expect, test } from "vitest";
import { Geometry } from "../../../src/base/geometry.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata, formatFinding } from "../../../src/metadata/check.ts";
import {
  DESCRIPTOR_BYTES,
  type Descriptor,
  DescriptorStore,
  descriptorFromJson,
  descriptorToJson,
  type SettledState,
} from "../../../src/metadata/descriptor.ts";
import { decodeSlot, encodeSlot, SLOT_BYTES } from "../../../src/metadata/descriptor-slot.ts";
import { planRepair } from "../../../src/metadata/repair.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { buildMetadata } from "../../support/metadata-image.ts";

const geometry = new Geometry({ size: 2 ** 30, regionSize: 4096 });
const place = { geometry, blockCount: 40 };
const OFFSET = 40 * 4096;

const sample: Descriptor = {
  uuid: "0f2c8d52-6b3e-4f0e-9d0a-1c9f3f1f7a11",
  created: "2026-01-02T03:04:05.678Z",
  source: {
    uri: "/images/disk.img",
    size: 2 ** 30,
    format: "raw",
    fingerprint: { kind: "file", size: 2 ** 30, mtimeNs: "1767323045678901234", inode: "18446744073709551615" },
  },
  destination: { uri: "/dev/vg/copy", size: 2 ** 31, fingerprint: { kind: "block", serial: "dm-LVM-x" } },
  exactSize: 2 ** 30 - 100,
  options: { regionSize: 4096, force: false, "header-file": null, "source-format": "raw" },
  unreadable: { ranges: [{ start: 3, end: 9 }], inexact: false },
  served: false,
  finalized: null,
};

/** The sample's destination as a run left it. */
function withSettled(settled: SettledState | null): Descriptor["destination"] {
  return { ...sample.destination, settled };
}

function blankDevice(options: { readOnly?: boolean } = {}): MemoryDevice {
  return new MemoryDevice({ size: OFFSET + DESCRIPTOR_BYTES, ...options });
}

async function bytesOf(device: MemoryDevice): Promise<Buffer> {
  const bytes = Buffer.alloc(device.size);
  await device.read(0, bytes);
  return bytes;
}

const reopened = async (device: MemoryDevice) => DescriptorStore.open(device, place);

/** A device whose slot 0 holds `payload` as it is, sealed. */
async function deviceWith(
  payload: string,
  header: { minorVersion?: number; sequence?: number } = {},
): Promise<MemoryDevice> {
  const device = blankDevice();
  await device.write(OFFSET, encodeSlot(place, { sequence: 1, minorVersion: 0, payload, ...header }));
  return device;
}

/** One exact size of many. */
const nth = (n: number): number => sample.exactSize - n;

describe("DescriptorStore", () => {
  test("gives back what was written, from a fresh look at the device", async () => {
    const device = blankDevice();
    const store = await reopened(device);
    expect(store.read()).toBeNull();
    await store.write(sample);
    expect(store.read()).toEqual(sample);
    const again = await reopened(device);
    expect(again.read()).toEqual(sample);
    expect(again.warnings).toEqual([]);
  });

  test.each<[string, Partial<Descriptor>]>([
    [
      "a destination that is settled",
      { destination: withSettled({ mtimeNs: "1767323045678901234", superblock: "0badcafe" }) },
    ],
    ["a destination at work", { destination: withSettled(null) }],
    [
      "when a file was made",
      { destination: { ...sample.destination, fingerprint: { kind: "file", inode: "7", birthtimeNs: "1" } } },
    ],
    [
      "a list that names everything unreadable",
      { unreadable: { ranges: [{ start: 3, end: 9 }], inexact: true, complete: true } },
    ],
    ["a list that does not", { unreadable: { ranges: [], inexact: false, complete: false } }],
    ["no more than a sector of slack", { exactSize: geometry.size - 511 }],
    ["the ends of what can be tuned", { tuned: { rate: 1, minRate: 0, threshold: 0, batchSize: 1 } }],
    ["what was tuned", { tuned: { rate: 1048576, minRate: null, threshold: 4, batchSize: null } }],
    ["an accepted change", { acceptedChange: "2026-01-02T03:04:05.678Z" }],
    [
      "a record that says whether the metadata was to stay",
      { finalized: { finished: "2026-01-02T03:04:05.678Z", verified: true, unreadableRegions: 6, metadataKept: true } },
    ],
  ])("gives back %s", async (_, fields) => {
    const device = blankDevice();
    await (await reopened(device)).write({ ...sample, ...fields });
    expect((await reopened(device)).read()).toEqual({ ...sample, ...fields });
  });

  test.each<[string, object]>([
    [
      "a time of settling that is no text",
      { destination: withSettled({ mtimeNs: 1 as unknown as string, superblock: "" }) },
    ],
    ["no superblock", { destination: withSettled({ mtimeNs: "1" } as unknown as SettledState) }],
    [
      "a time of making that is no number",
      { destination: { ...sample.destination, fingerprint: { birthtimeNs: "now" } } },
    ],
    ["a mark of completeness that is no boolean", { unreadable: { ranges: [], inexact: false, complete: 1 } }],
    ["an accepted change that is no text", { acceptedChange: true }],
    ["a tuned rate that is no number", { tuned: { rate: "fast" } }],
    // With a rate of 0 hydration would never end, and batches of 0 regions hold nothing.
    ["a tuned rate of 0", { tuned: { rate: 0 } }],
    ["a tuned batch size of 0", { tuned: { batchSize: 0 } }],
    ["a tuned batch size beyond 32 bits", { tuned: { batchSize: 2 ** 32 } }],
    ["a tuned threshold beyond 32 bits", { tuned: { threshold: 2 ** 32 } }],
    ["a tuned rate below 0", { tuned: { rate: -1 } }],
    // target_size is the exact size rounded up to whole sectors: with less, whole regions would lie behind the end.
    ["an exact size of 0", { exactSize: 0 }],
    ["an exact size with a whole sector of slack", { exactSize: geometry.size - 512 }],
    [
      "a record whose mark is no boolean",
      { finalized: { finished: "", verified: true, unreadableRegions: 0, metadataKept: "yes" } },
    ],
  ])("refuses %s", async (_, fields) => {
    const store = await reopened(blankDevice());
    await expect(store.write({ ...sample, ...fields } as Descriptor)).rejects.toThrow(RangeError);
    expect(store.read()).toBeNull();
  });

  test("touches nothing outside its two slots", async () => {
    const device = new MemoryDevice({
      size: OFFSET + DESCRIPTOR_BYTES + 512,
      content: Buffer.alloc(OFFSET + DESCRIPTOR_BYTES + 512, 7),
    });
    const store = await DescriptorStore.format(device, place);
    for (let i = 0; i < 3; i++) await store.write(sample);
    const bytes = await bytesOf(device);
    expect(bytes.subarray(0, OFFSET).every((byte) => byte === 7)).toBe(true);
    expect(bytes.subarray(OFFSET + DESCRIPTOR_BYTES).every((byte) => byte === 7)).toBe(true);
  });

  test("writes to its slots in turn and flushes each write", async () => {
    const calls: string[] = [];
    class RecordingDevice extends MemoryDevice {
      override async write(offset: number, data: Uint8Array): Promise<void> {
        calls.push(`write ${(offset - OFFSET) / SLOT_BYTES} ${data.length}`);
        return super.write(offset, data);
      }
      override async flush(): Promise<void> {
        calls.push("flush");
      }
    }
    const device = new RecordingDevice({ size: OFFSET + DESCRIPTOR_BYTES });
    const store = await reopened(device);
    await Promise.all([store.write(sample), store.write({ ...sample, served: true })]);
    await (await reopened(device)).write(sample);
    const expected = [0, 1, 0].flatMap((slot) => [`write ${slot} ${SLOT_BYTES}`, "flush"]);
    expect(calls).toEqual(expected);
    expect((await reopened(device)).read()).toEqual(sample);
  });

  test("takes the slot with the higher sequence number", async () => {
    const device = blankDevice();
    const write = async (slot: number, sequence: number, served: boolean) => {
      const payload = JSON.stringify(descriptorToJson({ ...sample, served }));
      await device.write(OFFSET + slot * SLOT_BYTES, encodeSlot(place, { sequence, minorVersion: 0, payload }));
    };
    await write(0, 10, false);
    await write(1, 9, true);
    expect((await reopened(device)).read()?.served).toBe(false);
    await write(1, 11, true);
    expect((await reopened(device)).read()?.served).toBe(true);
  });

  test.for(Array.from({ length: SLOT_BYTES / 512 + 1 }, (_, sectors) => sectors))(
    "has the old or the new descriptor after a write torn behind sector %i",
    async (sectors) => {
      const device = blankDevice();
      const store = await reopened(device);
      for (const n of [1, 2, 3]) await store.write({ ...sample, exactSize: nth(n) });
      const before = await bytesOf(device);
      // Long enough to change most of the slot.
      await store.write({
        ...sample,
        exactSize: nth(4),
        source: { ...sample.source, uri: "x".repeat(4000) },
        unreadable: many(3000),
      });
      const after = await bytesOf(device);
      const slot = OFFSET + SLOT_BYTES; // the fourth write goes to slot 1
      expect(before.subarray(0, slot).equals(after.subarray(0, slot))).toBe(true);
      const torn = Buffer.concat([after.subarray(0, slot + 512 * sectors), before.subarray(slot + 512 * sectors)]);
      const found = await reopened(new MemoryDevice({ size: torn.length, content: torn }));
      expect(found.read()?.exactSize).toBe(nth(torn.equals(after) ? 4 : 3));
      if (torn.equals(before) || torn.equals(after)) expect(found.warnings).toEqual([]);
      else expect(found.warnings).toEqual(["slot 1 has a wrong checksum (an interrupted write, or damage)"]);
    },
  );

  test("writes over the torn slot, not the whole one", async () => {
    const device = blankDevice();
    const store = await reopened(device);
    await store.write(sample);
    await store.write({ ...sample, served: true });
    await device.write(OFFSET + SLOT_BYTES + 512, Buffer.alloc(512, 1)); // slot 1 torn
    const after = await reopened(device);
    expect(after.read()).toEqual(sample);
    const slot0 = (await bytesOf(device)).subarray(OFFSET, OFFSET + SLOT_BYTES);
    await after.write({ ...sample, exactSize: nth(5) });
    expect((await bytesOf(device)).subarray(OFFSET, OFFSET + SLOT_BYTES).equals(slot0)).toBe(true);
    expect((await reopened(device)).read()?.exactSize).toBe(nth(5));
  });

  test.for([
    { name: "size", other: { geometry: new Geometry({ size: 2 ** 30 - 512, regionSize: 4096 }), blockCount: 40 } },
    { name: "region size", other: { geometry: new Geometry({ size: 2 ** 30, regionSize: 8192 }), blockCount: 40 } },
  ])("ignores the descriptor of a clone of another $name, and says so", async ({ other }) => {
    const device = blankDevice();
    await (await DescriptorStore.open(device, other)).write({ ...sample, exactSize: other.geometry.size });
    const store = await reopened(device);
    expect(store.read()).toBeNull();
    expect(store.warnings).toEqual(["slot 0 belongs to another clone (size, region size or block count differ)"]);
  });

  test("ignores a slot that another block count left at its place", () => {
    const slot = encodeSlot({ geometry, blockCount: 41 }, { sequence: 1, minorVersion: 0, payload: "{}" });
    expect(decodeSlot(place, slot)).toMatchObject({
      kind: "unusable",
      reason: expect.stringContaining("another clone"),
    });
  });

  test("has no room on a device that the metadata fills, and says so on writing", async () => {
    const device = new MemoryDevice({ size: OFFSET + DESCRIPTOR_BYTES - 1 });
    const store = await reopened(device);
    expect([store.hasRoom, store.read(), store.warnings]).toEqual([false, null, []]);
    await expect(store.write(sample)).rejects.toThrow('"memory" has no room for a descriptor');
    await expect(DescriptorStore.format(device, place)).rejects.toThrow(RangeError);
  });

  test("format() forgets an earlier clone of the same geometry", async () => {
    const device = blankDevice();
    await (await reopened(device)).write(sample);
    expect((await DescriptorStore.format(device, place)).read()).toBeNull();
    expect((await reopened(device)).read()).toBeNull();
  });

  test("keeps fields that a newer minor version added, at every level", async () => {
    const json = {
      ...descriptorToJson(sample),
      colour: { deep: [1, { x: null }] },
      source: { ...sample.source, mirror: "b", fingerprint: { ...sample.source.fingerprint, sha3: "ab" } },
      unreadable: { ranges: [[3, 9]], inexact: false, retried: 4 },
    };
    const device = await deviceWith(JSON.stringify(json), { minorVersion: 7 });
    const store = await reopened(device);
    const found = store.read();
    expect(found).not.toBeNull();
    await store.write({ ...(found as Descriptor), served: true });
    const kept = { ...json, served: true };
    expect(descriptorToJson((await reopened(device)).read() as Descriptor)).toEqual(kept);
    await store.write({ ...sample, exactSize: nth(1) }); // made afresh: what stands at the top level is kept even so
    expect((await reopened(device)).read()).toMatchObject({ colour: json.colour, exactSize: nth(1) });
    const slot = (await bytesOf(device)).subarray(OFFSET, OFFSET + SLOT_BYTES);
    expect(decodeSlot(place, slot)).toMatchObject({ minorVersion: 7 });
  });

  test("neither reads nor overwrites what a newer major version wrote", async () => {
    const device = await deviceWith("{}");
    const bytes = await bytesOf(device);
    bytes.writeUInt16LE(2, OFFSET + 12);
    const { crc32c } = await import("@node-rs/crc32");
    bytes.writeUInt32LE(crc32c(bytes.subarray(OFFSET + 12, OFFSET + 64 + 2)), OFFSET + 8);
    await device.write(OFFSET, bytes.subarray(OFFSET, OFFSET + SLOT_BYTES));
    const store = await reopened(device);
    expect([store.read(), store.warnings]).toEqual([null, ["slot 0 has version 2, this program knows 1"]]);
    await expect(store.write(sample)).rejects.toThrow('Cannot write the descriptor of "memory": it has version 2');
  });

  test("accepts no further write once one has failed, and still has the one before", async () => {
    const device = new FaultyDevice(blankDevice(), { failFlush: [1] });
    const store = await DescriptorStore.open(device, place);
    await store.write(sample);
    await expect(store.write({ ...sample, served: true })).rejects.toThrow("EIO");
    await expect(store.write({ ...sample, served: true })).rejects.toThrow("an earlier write of it failed");
    expect(store.read()).toEqual(sample);
  });

  test.for([
    ["that may be the newer one", 1, 0, true],
    ["whose content goes that far", 1, 1024, true],
    ["that is the older one", 3, 1024, false],
  ] as const)("shows a slot beside one %s and cannot be read", async ([, sequence, from, isLost]) => {
    const device = blankDevice();
    const json = { ...(descriptorToJson(sample) as object), later: "x".repeat(2000) };
    const payload = JSON.stringify(json);
    await device.write(OFFSET, encodeSlot(place, { sequence: 2, minorVersion: 0, payload }));
    await device.write(OFFSET + SLOT_BYTES, encodeSlot(place, { sequence, minorVersion: 0, payload }));
    const before = await bytesOf(device);
    const store = await DescriptorStore.open(unreadable(device, OFFSET + from), place);
    expect(store.read()).toMatchObject(sample);
    expect(store.warnings).toEqual([expect.stringContaining("slot 0 cannot be read: Cannot read 65536 bytes")]);
    if (isLost) {
      expect(store.unreadable).toMatchObject({ errno: "EIO", hint: expect.stringContaining("clone repair") });
      await expect(store.write({ ...sample, served: true })).rejects.toThrow("Cannot read 65536 bytes");
      expect(Buffer.compare(await bytesOf(device), before)).toBe(0);
      return;
    }
    expect(store.unreadable).toBeNull();
    await store.write({ ...sample, served: true });
    expect((await reopened(device)).read()).toMatchObject({ served: true });
  });

  test("minds no sector that cannot be read behind what a slot says, nor behind the first of a blank one", async () => {
    const device = blankDevice();
    await (await reopened(device)).write(sample);
    for (const offset of [OFFSET + 32768, OFFSET + SLOT_BYTES - 512, OFFSET + SLOT_BYTES + 512]) {
      const store = await DescriptorStore.open(unreadable(device, offset), place);
      expect([store.read(), store.warnings, store.unreadable]).toEqual([sample, [], null]);
    }
  });
});

/** Its sector at `at` fails. */
function unreadable(device: MemoryDevice, at: number): FaultyDevice {
  return new FaultyDevice(device, { failRead: ({ offset, length }) => offset < at + 512 && offset + length > at });
}

const valid = () => descriptorToJson(sample) as Record<string, unknown>;

test.for([
  { name: "no JSON", payload: "{", reason: "is no JSON" },
  { name: "a list", payload: "[]", reason: "is no JSON object" },
  { name: "nothing", payload: "", reason: "is no JSON" },
  {
    name: "deep nesting",
    payload: `{"x":${"[".repeat(30000)}${"]".repeat(30000)}}`,
    reason: "is nested more than 32 levels deep",
  },
  { name: "no uuid", payload: JSON.stringify({ ...valid(), uuid: undefined }), reason: "has no uuid" },
  { name: "a source without a URI", payload: JSON.stringify({ ...valid(), source: {} }), reason: "has no source.uri" },
  {
    name: "a size below 0",
    payload: JSON.stringify({ ...valid(), exactSize: -1 }),
    reason: "has an unusable exactSize: not an integer",
  },
  {
    name: "a clone too long",
    payload: JSON.stringify({ ...valid(), exactSize: 2 ** 30 + 1 }),
    reason: "has an unusable exactSize: not an",
  },
  {
    name: "a range beyond the clone",
    payload: JSON.stringify({ ...valid(), unreadable: { inexact: false, ranges: [[0, 262145]] } }),
    reason: "has an impossible unreadable range [0,262145]",
  },
  {
    name: "ranges that overlap",
    payload: JSON.stringify({
      ...valid(),
      unreadable: {
        inexact: false,
        ranges: [
          [0, 5],
          [4, 6],
        ],
      },
    }),
    reason: "has an impossible unreadable range [4,6]",
  },
  {
    name: "an option that is an object",
    payload: JSON.stringify({ ...valid(), options: { a: {} } }),
    reason: 'has an option "a"',
  },
])("DescriptorStore.open() ignores a descriptor with $name, and says what is wrong", async ({ payload, reason }) => {
  const store = await reopened(await deviceWith(payload));
  expect(store.read()).toBeNull();
  expect(store.warnings).toEqual([expect.stringContaining(`slot 0 ${reason}`)]);
});

test("descriptorFromJson() takes back what descriptorToJson() made", () => {
  expect(descriptorFromJson(JSON.parse(JSON.stringify(descriptorToJson(sample))), geometry)).toEqual(sample);
});

test.for([
  ["a URI too long", { source: { ...sample.source, uri: "x".repeat(4097) } }, "more than 4096 bytes"],
  ["a password", { source: { ...sample.source, uri: "nbd://me:secret@host/x" } }, "password"],
  ["a mtime in words", { source: { ...sample.source, fingerprint: { mtimeNs: "now" } } }, "no decimal number"],
  ["options without end", { options: { x: "y".repeat(5000) } }, "options of more than 4096 bytes"],
] as const)(
  "DescriptorStore.write() refuses a descriptor with %s and leaves the old one",
  async ([, change, message]) => {
    const device = blankDevice();
    const store = await reopened(device);
    await store.write(sample);
    await expect(store.write({ ...sample, ...change })).rejects.toThrow(message);
    expect((await reopened(device)).read()).toEqual(sample);
  },
);

/** Every second region, `count` of them. */
function many(count: number): Descriptor["unreadable"] {
  return { ranges: Array.from({ length: count }, (_, i) => ({ start: 2 * i, end: 2 * i + 1 })), inexact: false };
}

test("DescriptorStore.write() fits two URIs of 4096 bytes, all other fields at their longest and any number of ranges", async () => {
  const long = (bytes: number) => "\u0001".repeat(Math.floor((bytes - 2) / 6)); // six bytes each as JSON
  const fingerprint = {
    kind: long(256),
    size: Number.MAX_SAFE_INTEGER,
    mtimeNs: "-12345678901234567890",
    inode: "18446744073709551615",
    etag: long(1024),
    lastModified: long(256),
    serial: long(1024),
    sample: long(256),
  };
  const identity = { uri: "\u0001".repeat(4096), size: Number.MAX_SAFE_INTEGER, fingerprint };
  const fullest: Descriptor = {
    uuid: long(256),
    created: long(256),
    source: { ...identity, format: long(256) },
    destination: identity,
    exactSize: 2 ** 30,
    options: { [long(2000)]: long(2000) },
    unreadable: many(131072),
    served: false,
    finalized: { finished: long(256), verified: false, unreadableRegions: 262144 },
  };
  const device = blankDevice();
  await (await reopened(device)).write(fullest);
  const found = (await reopened(device)).read();
  expect({ ...found, unreadable: null }).toEqual({ ...fullest, unreadable: null });
  expect(found?.unreadable.inexact).toBe(true);
  expect(found?.unreadable.ranges.length).toBeGreaterThan(100);
});

test("DescriptorStore.write() says so when fields of a newer version leave no room", async () => {
  const device = await deviceWith(JSON.stringify({ ...descriptorToJson(sample), colour: "x".repeat(61000) }));
  const store = await reopened(device);
  const long = { ...sample, source: { ...sample.source, uri: "y".repeat(4096) } };
  await expect(store.write(long)).rejects.toThrow("fields of a newer version leave no room");
  expect((await reopened(device)).read()?.source.uri).toBe(sample.source.uri);
});

test("checkMetadata() warns of a damaged descriptor and is silent about a sound one or none", async () => {
  const { bytes } = buildMetadata({
    regionSectors: 8,
    targetSectors: 2 ** 21,
    blockCount: 40,
    trailer: DESCRIPTOR_BYTES,
  });
  const device = new MemoryDevice({ size: bytes.length, content: bytes });
  expect(await checkMetadata(device)).toMatchObject({ verdict: "clean" });
  await (await reopened(device)).write(sample);
  expect(await checkMetadata(device)).toMatchObject({ verdict: "clean" });
  await device.write(OFFSET + 70, Buffer.from("x"));
  const report = await checkMetadata(device);
  expect(report).toMatchObject({ ok: true, verdict: "warnings" });
  expect(report.warnings.map(formatFinding)).toEqual([
    "descriptor: slot 0 has a wrong checksum (an interrupted write, or damage)",
  ]);
});

// A file that was copied in part, or a device that was shrunk: the metadata is whole, and what stands behind it is not.
test.for([8, 100, SLOT_BYTES, DESCRIPTOR_BYTES - 1])(
  "a descriptor of which %i bytes are left is told of",
  async (left) => {
    const sizes = { regionSectors: 8, targetSectors: 2 ** 21, blockCount: 40 };
    const { bytes } = buildMetadata({ ...sizes, trailer: DESCRIPTOR_BYTES });
    const whole = new MemoryDevice({ size: bytes.length, content: bytes });
    await (await reopened(whole)).write(sample);
    const content = (await bytesOf(whole)).subarray(0, OFFSET + left);
    const device = new MemoryDevice({ size: content.length, content });
    const store = await DescriptorStore.open(device, place);
    expect([store.read(), store.warnings]).toEqual([null, [`it is cut off: ${left} of its 131072 bytes are there`]]);
    expect(store.unreadable).toMatchObject({ code: "damaged", message: expect.stringContaining("it is cut off") });
    const { fatal } = await checkMetadata(device);
    expect(fatal.map(formatFinding).join()).toMatch(/descriptor.*it is cut off/);
    const plan = await planRepair(device);
    expect(plan).toMatchObject({
      ok: true,
      descriptor: null,
      lost: [expect.stringMatching(/^The descriptor, .* cannot/)],
    });
  },
);

test("whatever the kernel's device has behind its last block is no descriptor cut off", async () => {
  const device = new MemoryDevice({ size: OFFSET + 1000, content: Buffer.alloc(OFFSET + 1000, "tail") });
  expect((await DescriptorStore.open(device, place)).warnings).toEqual([]);
});
