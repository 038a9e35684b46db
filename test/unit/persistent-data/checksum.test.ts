import { expect, test } from "vitest";
import { MetadataError } from "../../../src/base/errors.ts";
import {
  BLOCK_SIZE,
  type BlockType,
  checksumOf,
  classifyBlock,
  readU64,
  sealBlock,
  storedBlockNumber,
  verifyBlock,
  viewOf,
  writeU64,
} from "../../../src/persistent-data/checksum.ts";

const TYPES: BlockType[] = ["superblock", "node", "array", "index", "bitmap"];

function sealed(type: BlockType, block: number): Uint8Array {
  const bytes = new Uint8Array(BLOCK_SIZE).fill(7, 64);
  sealBlock(bytes, type, block);
  return bytes;
}

test("checksumOf() gives the kernel's checksum of an index block", () => {
  // The index of a freshly formatted clone of 16 regions on 32 blocks.
  const bytes = new Uint8Array(BLOCK_SIZE);
  bytes.set([1], 8);
  bytes.set([3, 0, 0, 0, 0, 0, 0, 0, 0xba, 0x3f, 0, 0, 6], 16);
  expect(checksumOf(bytes, "index")).toBe(0x96593b1e);
});

test.each(TYPES)("sealBlock() makes a block that is classified and verified as %s", (type) => {
  const bytes = sealed(type, 5);
  expect(classifyBlock(bytes)).toBe(type);
  expect(storedBlockNumber(bytes, type)).toBe(5);
  expect(() => verifyBlock(bytes, type, 5, "m")).not.toThrow();
});

test("classifyBlock() finds no type in zeros and none in a damaged block", () => {
  expect(classifyBlock(new Uint8Array(BLOCK_SIZE))).toBeUndefined();
  const bytes = sealed("array", 5);
  bytes[4095] = (bytes[4095] as number) ^ 1;
  expect(classifyBlock(bytes)).toBeUndefined();
});

test("verifyBlock() tells damage, another type and a wrong place apart, and names the block", () => {
  const damaged = sealed("node", 5);
  damaged[100] = 0;
  const errorOf = (bytes: Uint8Array, type: BlockType, block: number): MetadataError => {
    try {
      verifyBlock(bytes, type, block, "disk.meta");
    } catch (error) {
      if (error instanceof MetadataError) return error;
    }
    throw new Error("verifyBlock did not refuse");
  };
  expect(errorOf(damaged, "node", 5).message).toBe(
    'Block 5 of "disk.meta" is damaged: the checksum of a btree node does not match',
  );
  expect(errorOf(sealed("array", 5), "node", 5).message).toBe(
    'Block 5 of "disk.meta" holds an array block where a btree node is expected',
  );
  expect(errorOf(sealed("node", 6), "node", 5).message).toBe(
    'Block 5 of "disk.meta" is misplaced: it holds a btree node that belongs at block 6',
  );
  expect(errorOf(damaged, "node", 5).block).toBe(5);
});

test.each([0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1])("writeU64() and readU64() keep %d exactly", (value) => {
  const bytes = new Uint8Array(8);
  writeU64(viewOf(bytes), 0, value);
  expect(Buffer.from(bytes).readBigUInt64LE()).toBe(BigInt(value));
  expect(readU64(viewOf(bytes), 0)).toBe(value);
});
