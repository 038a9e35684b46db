// Every violation of the format's invariants, made alone by a hand of its own: the checker finds exactly that. The
// numbered comments are the invariants' numbers in clone-metadata(5).
import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { checkMetadata, formatFinding } from "../../../src/metadata/check.ts";
import {
  BLOCK,
  buildMetadata,
  flipBit,
  MetadataImage,
  REGIONS,
  recount,
  twoLevelImage,
  writeNode,
  writeReferenceCountLeaf,
} from "../../support/metadata-image.ts";

/** What is expected: `"structure block: start of the message"` of each finding, in order. */
interface Damage {
  name: string;
  /** Changes the image, or returns another. */
  make: (image: MetadataImage) => unknown;
  fatal?: string[];
  warnings?: string[];
  verdict?: string;
}

const cut = (image: MetadataImage, bytes: number) => new MetadataImage(image.bytes.subarray(0, bytes));
const unreached = (blocks: string) =>
  `space map: ${blocks} counted in use but not reached, leaked or cut off by the damage`;
const superblock = (change: (image: MetadataImage) => void) => (image: MetadataImage) => {
  change(image);
  image.seal(0, "superblock", { keepNumber: true });
};
const flip = (block: number) => (image: MetadataImage) => flipBit(image, block);
const node = (block: number, change: (image: MetadataImage) => void) => (image: MetadataImage) =>
  image.edit(block, "node", () => change(image));

const DAMAGES: Damage[] = [
  // 1. Something to look at
  { name: "an empty file", make: (i) => cut(i, 0), verdict: "too-short", fatal: ["device: it is empty, the smallest"] },
  {
    name: "100 bytes",
    make: (i) => cut(i, 100),
    verdict: "too-short",
    fatal: ["device: it has 100 bytes, the smallest metadata has 24576 bytes (6 blocks of 4096)"],
  },
  {
    name: "the first 5 blocks",
    make: (i) => cut(i, 5 * BLOCK),
    verdict: "too-short",
    fatal: [
      "device: it has 20480 bytes, the smallest metadata has 24576 bytes (6 blocks of 4096); it starts as one, so it was cut off",
    ],
  },
  {
    name: "a blank device",
    make: () => new MetadataImage(Buffer.alloc(40 * BLOCK)),
    verdict: "not-formatted",
    fatal: ["superblock: not formatted: the first block is all zero; no metadata blocks stand behind it: a new device"],
  },
  {
    name: "a zeroed first block",
    make: (i) => void i.block(0).fill(0),
    verdict: "not-formatted",
    fatal: [
      "superblock: not formatted: the first block is all zero; but 12 valid metadata blocks stand behind it: the superblock was wiped",
    ],
  },
  {
    name: "a LUKS header in front",
    make: (i) => void i.block(0).fill(0).write("LUKS\xba\xbe", "latin1"),
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: the first block holds a LUKS volume; but 12 valid metadata blocks"],
  },
  {
    name: "thin-pool metadata",
    make: () => {
      const other = new MetadataImage(Buffer.alloc(40 * BLOCK));
      other.set64(0, 32, 27022010);
      return other;
    },
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: the first block holds thin-pool metadata; no metadata blocks"],
  },
  {
    name: "text",
    make: () => new MetadataImage(Buffer.alloc(40 * BLOCK, "0 131072 clone\n")),
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: the first block holds text; no metadata blocks"],
  },
  {
    name: "a dump",
    make: () => new MetadataImage(Buffer.alloc(40 * BLOCK, '{ "format": 1, ')),
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: the first block holds a dump of metadata as text"],
  },
  {
    name: "noise",
    make: () => new MetadataImage(Buffer.alloc(40 * BLOCK, "\x9c\x01\x77")),
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: the first block holds another kind of data"],
  },
  {
    name: "an array block in front",
    make: (i) => void i.block(5).copy(i.block(0)),
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: the first block holds a valid array block"],
  },
  // 2. The superblock
  {
    name: "a superblock with a flipped bit",
    make: flip(0),
    fatal: ["superblock: its checksum is wrong: the block is damaged; nothing that it points to can be trusted"],
  },
  {
    name: "a superblock with another block's number",
    make: superblock((i) => i.set64(0, 8, 5)),
    fatal: ["superblock: it carries the number of block 5: a write went to the wrong place"],
  },
  {
    name: "another magic number",
    make: superblock((i) => i.set64(0, 32, 0x8af27f65)),
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: its checksum is a superblock's but its magic number is not"],
  },
  {
    name: "a magic number with its upper half set",
    make: superblock((i) => i.set32(0, 36, 1)),
    verdict: "foreign",
    fatal: ["superblock: no dm-clone metadata: its checksum is a superblock's but its magic number is not"],
  },
  {
    name: "version 2",
    make: superblock((i) => i.set32(0, 40, 2)),
    fatal: ["superblock: format version 2 is unknown"],
  },
  ...[0, 4, 12, 2 ** 22].map((size) => ({
    name: `a region size of ${size} sectors`,
    make: superblock((i) => i.set64(0, 172, size)),
    fatal: [`superblock: region size of ${size} sectors is no power of two from 8 to 2097152`],
    warnings: [unreached("9 blocks are")],
  })),
  {
    name: "a target size of 0",
    make: superblock((i) => i.set64(0, 180, 0)),
    fatal: ["superblock: target size is 0"],
    warnings: [unreached("9 blocks are")],
  },
  {
    name: "2^31 + 1 regions",
    make: superblock((i) => i.set64(0, 180, 8 * 2 ** 31 + 1)),
    fatal: ["superblock: 17179869185 sectors make 2147483649 regions, more than the possible 2^31"],
    warnings: [unreached("9 blocks are")],
  },
  {
    name: "a target size beyond 2^53",
    make: superblock((i) => i.set64(0, 180, 2n ** 64n - 1n)),
    fatal: ["superblock: more than 2^53 sectors make more than 2^53 regions"],
    warnings: [unreached("9 blocks are")],
  },
  ...[0, 5, 4161601].map((count) => ({
    name: `${count} managed blocks`,
    make: superblock((i) => i.set64(0, 44, count)),
    fatal: [`superblock: ${count} managed blocks are not from 6 to 4161600`],
  })),
  {
    name: "a file that ends before the last managed block",
    make: (i) => cut(i, 64 * BLOCK - 1),
    fatal: ["superblock: 64 blocks (262144 bytes) are managed but the device has 262143 bytes: cut off"],
  },
  {
    name: "a file cut in the middle of the live blocks",
    make: (i) => cut(i, 12 * BLOCK),
    fatal: [
      "superblock: 64 blocks (262144 bytes) are managed but the device has 49152 bytes: cut off",
      "bitset node 12: it lies beyond the end of the device; whether regions 130304 to 162849 are hydrated is unknown",
    ],
    warnings: [unreached("1 block is")],
  },
  // 3. The roots
  ...[0, 64, 2n ** 63n].flatMap((block) => {
    const named = typeof block === "bigint" ? "a block number beyond 2^53" : `block ${block}`;
    const where = `it points to ${named}, outside 1 to 63`;
    return [
      {
        name: `a bitset root of ${block}`,
        make: superblock((i) => i.set64(0, 188, block)),
        fatal: [`superblock: root of the tree of bitset nodes: ${where}`],
        warnings: [unreached("9 blocks are")],
      },
      {
        name: `an index block of ${block}`,
        make: superblock((i) => i.set64(0, 60, block)),
        fatal: [`superblock: root of the space map: ${where}`],
      },
      {
        name: `a reference-count root of ${block}`,
        make: superblock((i) => i.set64(0, 68, block)),
        fatal: [`superblock: root of the tree of reference-count nodes: ${where}`],
        warnings: [unreached("1 block is")],
      },
    ];
  }),
  {
    name: "the index block as the reference-count root",
    make: superblock((i) => i.set64(0, 68, 1)),
    fatal: ["superblock: root of the tree of reference-count nodes: it points to block 1, which is already in use"],
    warnings: [unreached("1 block is")],
  },
  {
    name: "the bitmap as the bitset root",
    make: superblock((i) => i.set64(0, 188, 3)),
    fatal: ["superblock: root of the tree of bitset nodes: it points to block 3, which is already in use elsewhere"],
    warnings: [unreached("9 blocks are")],
  },
  // 4. Every block: checksum, type, number
  {
    name: "a damaged index block",
    make: flip(1),
    fatal: ["index block 1: its checksum is wrong: the block is damaged; which blocks are in use is unknown"],
  },
  {
    name: "a damaged bitmap block",
    make: flip(3),
    fatal: [
      "bitmap block 3: its checksum is wrong: the block is damaged; which of the blocks 0 to 63 are in use is unknown",
    ],
  },
  {
    name: "a damaged reference-count leaf",
    make: flip(2),
    fatal: ["reference-count node 2: its checksum is wrong: the block is damaged; counts above 2 are unknown"],
  },
  {
    name: "a damaged bitset root",
    make: flip(4),
    fatal: [
      "bitset node 4: its checksum is wrong: the block is damaged; whether regions 0 to 162849 are hydrated is unknown",
    ],
    warnings: [unreached("8 blocks are")],
  },
  {
    name: "a damaged bitset leaf",
    make: flip(11),
    fatal: [
      "bitset node 11: its checksum is wrong: the block is damaged; whether regions 65152 to 130303 are hydrated",
    ],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a damaged array block",
    make: flip(6),
    fatal: [
      "array block 6: its checksum is wrong: the block is damaged; whether regions 32576 to 65151 are hydrated is unknown",
    ],
  },
  {
    name: "a zeroed array block",
    make: (i) => void i.block(9).fill(0),
    fatal: ["array block 9: it is all zero: never written, or lost; whether regions 130304 to 162849 are hydrated"],
  },
  {
    name: "an array block at another one's place",
    make: (i) => void i.block(6).copy(i.block(7)),
    fatal: ["array block 7: it carries the number of block 6: a write went to the wrong place; whether regions 65152"],
  },
  {
    name: "a node where an array block belongs",
    make: (i) => void i.block(10).copy(i.block(7)),
    fatal: ["array block 7: a valid btree node, numbered 10, stands where the array block is expected; whether"],
  },
  {
    name: "an array block where a node belongs",
    make: (i) => i.seal(4, "array"),
    fatal: ["bitset node 4: a valid array block stands where the btree node is expected; whether regions 0 to"],
    warnings: [unreached("8 blocks are")],
  },
  {
    name: "a bitmap block where the index belongs",
    make: (i) => i.seal(1, "bitmap"),
    fatal: ["index block 1: a valid bitmap block stands where the index block is expected"],
  },
  {
    name: "an index block where a bitmap belongs",
    make: (i) => i.seal(3, "index"),
    fatal: ["bitmap block 3: a valid index block stands where the bitmap block is expected"],
  },
  // 5. Nodes
  ...[0, 3, 6].map((flags) => ({
    name: `a node with flags ${flags}`,
    make: node(11, (i) => i.set32(11, 4, flags)),
    fatal: [`bitset node 11: flags are ${flags}, neither 1 (internal) nor 2 (leaf); whether regions 65152 to`],
    warnings: [unreached("2 blocks are")],
  })),
  {
    name: "a bitset leaf with values of 4 bytes",
    make: node(11, (i) => i.set32(11, 24, 4)),
    fatal: ["bitset node 11: value size is 4, not 8; whether"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a reference-count leaf with values of 8 bytes",
    make: node(2, (i) => i.set32(2, 24, 8)),
    fatal: ["reference-count node 2: value size is 8, not 4; counts above 2 are unknown"],
  },
  {
    name: "a leaf with room for 253 entries",
    make: node(11, (i) => i.set32(11, 20, 253)),
    fatal: ["bitset node 11: room for 253 entries is claimed, not 252; whether"],
    warnings: [unreached("2 blocks are")],
  },
  ...[253, 2 ** 32 - 1].map((count) => ({
    name: `a leaf with ${count} entries`,
    make: node(11, (i) => i.set32(11, 16, count)),
    fatal: [`bitset node 11: ${count} entries are claimed where 252 have room; whether`],
    warnings: [unreached("2 blocks are")],
  })),
  {
    name: "keys out of order",
    make: node(11, (i) => i.set64(11, 40, 2)),
    fatal: ["bitset node 11: keys are not ascending: 2 is followed by 2; whether"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a key above the parent's range",
    make: node(11, (i) => i.set64(11, 40, 4)),
    fatal: ["bitset node 11: key 4 is outside the parent's range from 2 to 3; whether"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a key below the parent's range",
    make: node(11, (i) => i.set64(11, 32, 1)),
    fatal: ["bitset node 11: key 1 is outside the parent's range from 2 to 3; whether"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a key beyond 2^53",
    make: node(11, (i) => i.set64(11, 40, 2n ** 60n)),
    fatal: ["bitset node 11: a key beyond 2^53 is outside the parent's range from 2 to 3; whether"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a root whose first key is not 0",
    make: node(4, (i) => i.set64(4, 32, 1)),
    fatal: [
      "bitset node 10: key 0 is outside the parent's range from 1 to 1; whether regions 32576 to 65151",
      "bitset: key 0 is missing from the tree; whether regions 0 to 32575 are hydrated is unknown",
    ],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "leaves at two levels",
    make: (i) => {
      writeNode(i, 13, 1, [[2, 11]]);
      writeNode(i, 4, 1, [
        [0, 10],
        [2, 13],
        [4, 12],
      ]);
      i.setCount(13, 1);
      recount(i);
    },
    fatal: ["bitset node 11: a leaf at level 3 where others are at level 2; whether regions 65152 to 130303"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "an internal node without entries",
    make: (i) => writeNode(i, 11, 1, []),
    fatal: ["bitset node 11: an internal node without entries; whether"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a tree that loops",
    make: node(4, (i) => i.set64(4, 2056, 4)),
    fatal: [
      "bitset node 4: entry 1: it points to block 4, which is already in use elsewhere; whether regions 65152 to 130303",
    ],
    warnings: [unreached("3 blocks are")],
  },
  {
    name: "an array block under two keys",
    make: node(11, (i) => i.set64(11, 2048, 5)),
    fatal: [
      "bitset node 11: key 2: it points to block 5, which is already in use elsewhere; whether regions 65152 to 97727",
    ],
    warnings: [unreached("1 block is")],
  },
  {
    name: "the same root for both trees",
    make: superblock((i) => i.set64(0, 188, 2)),
    fatal: ["superblock: root of the tree of bitset nodes: it points to block 2, which is already in use elsewhere"],
    warnings: [unreached("9 blocks are")],
  },
  {
    name: "a child outside the managed blocks",
    make: node(4, (i) => i.set64(4, 2056, 64)),
    fatal: ["bitset node 4: entry 1: it points to block 64, outside 1 to 63; whether regions 65152 to 130303"],
    warnings: [unreached("3 blocks are")],
  },
  {
    name: "a tree of 17 levels",
    make: (i) => {
      for (let level = 0; level < 16; level++) {
        writeNode(i, 20 + level, 1, [[0, level === 15 ? 4 : 21 + level]]);
        i.setCount(20 + level, 1);
      }
      i.edit(0, "superblock", () => i.set64(0, 188, 20));
      recount(i);
    },
    fatal: ["bitset node 35: the tree is more than 16 levels deep; whether regions 0 to 162849"],
    warnings: [unreached("9 blocks are")],
  },
  // 6. Keys and array blocks
  {
    name: "a missing last key",
    make: node(12, (i) => i.set32(12, 16, 0)),
    fatal: ["bitset: key 4 is missing from the tree; whether regions 130304 to 162849 are hydrated is unknown"],
    warnings: [unreached("1 block is")],
  },
  {
    name: "missing keys in the middle",
    make: (i) => {
      writeNode(i, 11, 2, []);
    },
    fatal: ["bitset: keys 2 to 3 are missing from the tree; whether regions 65152 to 130303 are hydrated is unknown"],
    warnings: [unreached("2 blocks are")],
  },
  {
    name: "a surplus key",
    make: (i) => {
      i.block(9).copy(i.block(13));
      i.seal(13, "array");
      writeNode(i, 12, 2, [
        [4, 9],
        [5, 13],
      ]);
      i.setCount(13, 1);
      recount(i);
    },
    fatal: ["bitset node 12: key 5 is surplus, the last one needed is 4"],
  },
  {
    name: "an array block with values of 4 bytes",
    make: (i) => i.edit(6, "array", () => i.set32(6, 12, 4)),
    fatal: ["array block 6: value size is 4, not 8; whether"],
  },
  {
    name: "an array block with room for 510 words",
    make: (i) => i.edit(6, "array", () => i.set32(6, 4, 510)),
    fatal: ["array block 6: room for 510 words is claimed, not 509; whether"],
  },
  {
    name: "a short array block in the middle",
    make: (i) => i.edit(6, "array", () => i.set32(6, 8, 508)),
    fatal: ["array block 6: it holds 508 words, not 509; whether"],
  },
  {
    name: "a word too many at the end",
    make: (i) => i.edit(9, "array", () => i.set32(9, 8, 510)),
    fatal: ["array block 9: it holds 510 words, not 509; whether"],
  },
  // 7. The index
  ...[0, 64].map((block) => ({
    name: `an index entry that points to block ${block}`,
    make: (i: MetadataImage) => i.edit(1, "index", () => i.set64(1, 16, block)),
    fatal: [`index block 1: entry 0: it points to block ${block}, outside 1 to 63`],
  })),
  {
    name: "an index entry that points to a node",
    make: (i) => i.edit(1, "index", () => i.set64(1, 16, 4)),
    fatal: [
      "bitmap block 4: a valid btree node stands where the bitmap block is expected; which of the blocks 0 to 63",
      "superblock: root of the tree of bitset nodes: it points to block 4, which is already in use elsewhere",
    ],
  },
  // 8. Counts too low
  {
    name: "live blocks counted free",
    make: (i) => {
      for (const block of [6, 7, 12]) i.setCount(block, 0);
      recount(i);
    },
    fatal: [
      "bitmap block 3: blocks 6 to 7 are in use but counted free; the kernel may overwrite them",
      "bitmap block 3: block 12 is in use but counted free; the kernel may overwrite it",
    ],
  },
  {
    name: "the superblock counted free",
    make: (i) => {
      i.setCount(0, 0);
      recount(i);
    },
    fatal: ["bitmap block 3: block 0 is in use but counted free; the kernel may overwrite it"],
  },
  // 9. Counts too high
  {
    name: "leaked blocks",
    make: (i) => {
      for (const block of [20, 21, 22, 40]) i.setCount(block, 1);
      recount(i);
    },
    warnings: [
      "bitmap block 3: blocks 20 to 22 are counted in use but nothing refers to them: leaked",
      "bitmap block 3: block 40 is counted in use but nothing refers to it: leaked",
    ],
  },
  {
    name: "a count of 2",
    make: (i) => i.setCount(6, 2),
    warnings: ["bitmap block 3: block 6 is in use once but counted more often; the kernel will never free it"],
  },
  {
    name: "a count of 5",
    make: (i) => {
      i.setCount(6, 3);
      writeReferenceCountLeaf(i, 2, [[6, 5]]);
    },
    warnings: ["bitmap block 3: block 6 is in use once but counted more often; the kernel will never free it"],
  },
  // 10. Bookkeeping
  {
    name: "a wrong number of allocated blocks",
    make: superblock((i) => i.set64(0, 52, 31)),
    warnings: ["superblock: 31 allocated blocks are recorded, the bitmaps count 13"],
  },
  {
    name: "a wrong number of free entries",
    make: (i) => i.edit(1, "index", () => i.set32(1, 24, 16320)),
    warnings: ["index block 1: entry 0 counts 16320 free entries, its bitmap has 16307"],
  },
  {
    name: "no free entries",
    make: (i) => i.edit(1, "index", () => i.set32(1, 24, 0)),
    warnings: [
      "index block 1: entry 0 counts 0 free entries, its bitmap has 16307; the kernel will not allocate from it",
    ],
  },
  {
    name: "a hint that hides free blocks",
    make: (i) => i.edit(1, "index", () => i.set32(1, 28, 14)),
    warnings: ["index block 1: entry 0 says that nothing is free before 14, but 13 is; the kernel leaves"],
  },
  { name: "a hint that is low", make: (i) => i.edit(1, "index", () => i.set32(1, 28, 0)) },
  {
    name: "entries beyond the last block",
    make: (i) => {
      i.setCount(64, 1);
      i.setCount(16319, 2);
      i.edit(1, "index", () => i.set32(1, 24, 16305));
    },
    warnings: ["bitmap block 3: 2 entries beyond the last managed block are not zero"],
  },
  {
    name: "an index entry too many",
    make: (i) => i.edit(1, "index", () => i.set64(1, 16 + 16 * 254, 3)),
    warnings: ["index block 1: entry 254 is not zero, though only 1 are needed"],
  },
  {
    name: "a listed count without an entry of 3",
    make: (i) => writeReferenceCountLeaf(i, 2, [[6, 4]]),
    warnings: ["reference-count node 2: block 6 is listed, but its bitmap entry is not 3"],
  },
  {
    name: "a listed count of a block that is not managed",
    make: (i) => writeReferenceCountLeaf(i, 2, [[64, 4]]),
    warnings: ["reference-count node 2: 1 entries are for blocks beyond the last managed one"],
  },
  {
    name: "an entry of 3 that is not listed",
    make: (i) => i.setCount(6, 3),
    warnings: ["bitmap block 3: block 6 is counted as 3 or more, but no such count is in the reference-count tree"],
  },
  {
    name: "a listed count of 2",
    make: (i) => {
      i.setCount(6, 3);
      writeReferenceCountLeaf(i, 2, [[6, 2]]);
    },
    warnings: ["bitmap block 3: block 6 is counted as 3 or more, but no such count is in the reference-count tree"],
  },
  {
    name: "a count of 4 in a tree of two levels",
    make: (i) => {
      i.setCount(6, 3);
      i.setCount(13, 1);
      writeReferenceCountLeaf(i, 13, [[6, 4]]);
      writeNode(i, 2, 1, [[0, 13]]);
      recount(i);
    },
    warnings: ["bitmap block 3: block 6 is in use once but counted more often; the kernel will never free it"],
  },
  {
    name: "a count of 2 of a block that nothing refers to",
    make: (i) => {
      i.setCount(20, 2);
      recount(i);
    },
    warnings: ["bitmap block 3: block 20 is counted in use but nothing refers to it: leaked"],
  },
  {
    name: "free entries in an index entry too many",
    make: (i) => i.edit(1, "index", () => i.set32(1, 24 + 16 * 3, 5)),
    warnings: ["index block 1: entry 3 is not zero, though only 1 are needed"],
  },
  // 11. Bits beyond the last region
  {
    name: "a bit beyond the last region",
    make: (i) => {
      const last = REGIONS - 4 * 32576; // first bit that stands for nothing
      i.edit(9, "array", (bytes) => {
        bytes[24 + Math.floor(last / 8)] = (bytes[24 + Math.floor(last / 8)] ?? 0) | (1 << (last % 8));
      });
    },
    warnings: ["array block 9: 1 bit beyond the last region is set; the kernel ignores and keeps this"],
  },
  // 12. Spare bytes of the superblock
  { name: "flags", make: superblock((i) => i.set32(0, 4, 1)), warnings: ["superblock: flags are not zero;"] },
  { name: "a uuid", make: superblock((i) => i.set32(0, 28, 1)), warnings: ["superblock: uuid is not zero;"] },
  {
    name: "a spare byte of the space map root",
    make: superblock((i) => i.set32(0, 168, 1)),
    warnings: ["superblock: spare bytes of the space map root are not zero;"],
  },
  {
    name: "a byte behind the last field",
    make: superblock((i) => i.set32(0, 4092, 0x01000000)),
    warnings: ["superblock: bytes behind the last field are not zero;"],
  },
  // 13. Size
  {
    name: "a block less than a commit may need",
    make: () => buildMetadata({ regionSectors: 8, targetSectors: 128, blockCount: 9 }),
    warnings: [
      "superblock: 9 blocks are fewer than the 10 needed: a commit may run out of space, and the kernel can crash",
    ],
  },
  {
    name: "as few blocks as will do",
    make: () => buildMetadata({ regionSectors: 8, targetSectors: 128, blockCount: 10 }),
  },
];

test.for(DAMAGES)(
  "checkMetadata() finds exactly what is wrong with $name",
  async ({ make, fatal = [], warnings = [], verdict }) => {
    const image = twoLevelImage();
    const made = make(image);
    const { bytes } = made instanceof MetadataImage ? made : image;
    const report = await checkMetadata(new MemoryDevice({ size: bytes.length, content: bytes, readOnly: true }));
    const lines = report.fatal.map(formatFinding);
    expect(lines.map((line, i) => line.slice(0, fatal[i]?.length))).toEqual(fatal);
    expect(report.warnings.map(formatFinding).map((line, i) => line.slice(0, warnings[i]?.length))).toEqual(warnings);
    expect(report.ok).toBe(fatal.length === 0);
    expect(report.verdict).toBe(verdict ?? (fatal.length > 0 ? "damaged" : warnings.length > 0 ? "warnings" : "clean"));
  },
);
