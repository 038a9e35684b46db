/**
 * The descriptor, whose JSON may come from anybody: slots with any header, payload and checksum. A message is a byte of how to
 * seal it, and the slot from its header on.
 */
import assert from "node:assert/strict";
import { crc32c } from "@node-rs/crc32";
import { Geometry } from "../../../src/base/geometry.ts";
import { displayUri } from "../../../src/clone/location.ts";
import { recordedLocation } from "../../../src/clone/recorded-location.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { type Descriptor, DescriptorStore, descriptorToJson } from "../../../src/metadata/descriptor.ts";
import { encodeSlot, SLOT_BYTES } from "../../../src/metadata/descriptor-slot.ts";
import { dumpMetadata } from "../../../src/metadata/dump.ts";
import type { SeededRandom } from "../../support/random.ts";
import { mutate } from "../mutate.ts";
import { type FuzzTarget, mustHold, type Outcome, outcomeOfAsync } from "../target.ts";

const BLOCKS = 16;
const BLOCK = 4096;
const HEADER = 64;
const geometry = new Geometry({ size: 2 ** 30 - 512, regionSize: 65536 });
/** The metadata that they belong to. */
export const PLACE = { geometry, blockCount: BLOCKS };

function identity(random: SeededRandom, uri: string) {
  const fingerprint = random.oneIn(2)
    ? { kind: "file", size: geometry.size, mtimeNs: "1700000000000000000", inode: "5", birthtimeNs: "-1" }
    : {
        kind: "http",
        etag: '"é"',
        lastModified: "Wed, 01 Jan 2025 00:00:00 GMT",
        sample: "ab".repeat(32),
        serial: "x y",
      };
  return { uri, size: geometry.size, fingerprint };
}

/** A good descriptor. */
export function goodDescriptor(random: SeededRandom): Descriptor {
  const ranges = Array.from({ length: random.integer(0, 6) }, (_, index) => ({
    start: index * 100 + random.integer(0, 40),
    end: index * 100 + random.integer(41, 99),
  }));
  const uris = [
    "file:///srv/disk%20one.img",
    "nbd+unix:///disk?socket=/run/nbd.sock",
    "https://h/x?…",
    "command:nbdkit",
  ];
  return {
    uuid: "6f9619ff-8b86-d011-b42d-00c04fc964ff",
    created: "2026-01-01T00:00:00.000Z",
    source: { ...identity(random, random.pick([...uris, "rbd:p/i:id=me"])), format: random.pick(["raw", "qcow2"]) },
    destination: {
      ...identity(random, random.pick(uris)),
      ...(random.oneIn(2)
        ? {}
        : { settled: random.pick([null, { mtimeNs: "5", superblock: "deadbeef", sample: "s" }]) }),
      ...(random.oneIn(3) ? { touched: true } : {}),
    },
    exactSize: geometry.size,
    options: { rate: 1000, name: "é\n", none: null, yes: true },
    unreadable: { ranges, inexact: random.oneIn(2), ...(random.oneIn(2) ? { complete: true } : {}) },
    served: random.oneIn(2),
    ...(random.oneIn(3) ? { acceptedChange: "2026-01-01T00:00:00.000Z" } : {}),
    finalized: random.oneIn(2)
      ? null
      : { finished: "2026-01-02T00:00:00.000Z", verified: true, unreadableRegions: 0, metadataKept: true },
  };
}

const DICTIONARY = [
  ...[
    '"uri":"file://host/x",',
    '"uri":"file:///%zz"',
    '"ranges":[[0,16384]]',
    "[[",
    '{"a":',
    '"__proto__":{"served":1},',
  ],
  ...[
    '"exactSize":1e999',
    "\\u0000",
    "\\ud800",
    '"destination":null',
    '"finalized":{}',
    '"options":{"a":[]}',
    "-0",
    "1e308",
  ],
];

function message(seal: number, slot: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from([seal]), slot]);
}

function generate(random: SeededRandom): { bytes: Buffer; isGood: boolean } {
  const payload = Buffer.from(JSON.stringify(descriptorToJson(goodDescriptor(random))));
  const slot = Buffer.from(encodeSlot(PLACE, { sequence: random.integer(1, 9), minorVersion: 0, payload: "" }));
  const sealed = (text: Buffer, header: Buffer): Buffer => {
    header.writeUInt32LE(text.length, 48);
    return message(1, Buffer.concat([header, text]));
  };
  const header = Buffer.from(slot.subarray(0, HEADER));
  const kind = random.integer(0, 9);
  if (kind === 0) return { bytes: sealed(payload, header), isGood: true };
  if (kind <= 2) {
    const struck = mutate(message(1, Buffer.concat([header, payload])).subarray(1), random);
    return { bytes: message(random.integer(0, 1), struck), isGood: false };
  }
  const material = { dictionary: DICTIONARY, isText: true, others: [payload] };
  return { bytes: sealed(mutate(payload, random, material).subarray(0, SLOT_BYTES - HEADER), header), isGood: false };
}

/** The bytes of a slot, with a good checksum where the message asks for one. */
function slotOf(bytes: Buffer): Buffer {
  const slot = Buffer.alloc(SLOT_BYTES);
  bytes.subarray(1).copy(slot);
  const length = Math.min(slot.readUInt32LE(48), SLOT_BYTES - HEADER);
  if (bytes[0] === 1) slot.writeUInt32LE(crc32c(slot.subarray(12, HEADER + length)), 8);
  return slot;
}

async function run(bytes: Buffer): Promise<Outcome> {
  const device = new MemoryDevice({ size: BLOCKS * BLOCK + 2 * SLOT_BYTES });
  await device.write(BLOCKS * BLOCK, slotOf(bytes));
  const store = await DescriptorStore.open(device, PLACE);
  const found = store.read();
  for (const warning of store.warnings) mustHold(warning.length < 4096, "a warning that shows all of it");
  if (found === null) return "refused";
  for (const role of ["source", "destination"] as const) {
    displayUri(found[role].uri);
    await outcomeOfAsync(async () => void (await recordedLocation(found[role].uri, role)));
  }
  const json = JSON.stringify(descriptorToJson(found));
  const dump = [...dumpMetadata({ geometry, hydratedRanges: [], descriptor: found })].join("");
  assert.equal(JSON.stringify((JSON.parse(dump) as { descriptor: unknown }).descriptor), json);
  await outcomeOfAsync(async () => {
    await store.write(found);
    const again = (await DescriptorStore.open(device, PLACE)).read();
    mustHold(again !== null, "what was written is not read");
    if (!again.unreadable.inexact || found.unreadable.inexact)
      assert.equal(JSON.stringify(descriptorToJson(again)), json);
  });
  return "accepted";
}

/** Descriptors. */
export const descriptors: FuzzTarget = {
  name: "descriptors",
  weight: 50,
  mostBytes: 1024 * 1024,
  open: () => ({ generate, run, async [Symbol.asyncDispose]() {} }),
};
