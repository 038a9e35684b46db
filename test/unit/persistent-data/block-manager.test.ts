import { expect, test } from "vitest";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { BlockManager } from "../../../src/persistent-data/block-manager.ts";
import { BLOCK_SIZE } from "../../../src/persistent-data/checksum.ts";
import { FaultyDevice } from "../../support/faulty-device.ts";
import { RecordingDevice } from "../../support/recording-device.ts";

function recording(blockCount: number): RecordingDevice {
  return new RecordingDevice(new MemoryDevice({ name: "store", size: blockCount * BLOCK_SIZE }));
}

function content(mark: number): Uint8Array {
  return new Uint8Array(BLOCK_SIZE).fill(mark, 32);
}

test("BlockManager.flush() writes neighbours as one, in the order of their numbers, whatever order they came in", async () => {
  const device = recording(1000);
  const blocks = new BlockManager(device, { blockCount: 1000 });
  for (const block of [9, 3, 5, 4, 10, 700]) await blocks.write(block, "node", content(block));
  expect(device.log).toEqual([]);
  await blocks.flush();
  expect(device.log).toEqual(["write 3+3", "write 9+2", "write 700+1", "flush"]);
  for (const block of [9, 3, 5, 4, 10, 700]) expect((await blocks.read(block, "node"))[32]).toBe(block % 256);
});

test("BlockManager.write() holds back no more than its buffer, and no superblock with it", async () => {
  const device = recording(1000);
  const blocks = new BlockManager(device, { blockCount: 1000, bufferBytes: 4 * BLOCK_SIZE });
  for (let block = 1; block <= 10; block++) await blocks.write(block, "array", content(block));
  expect(device.log).toEqual(["write 1+4", "write 5+4"]);
  await expect(blocks.writeSuperblock(content(0))).rejects.toThrow("superblock written before what it points to");
  await blocks.flush();
  await blocks.writeSuperblock(content(0));
  expect(device.log.slice(2)).toEqual(["write 9+2", "flush", "write 0+1", "flush"]);
});

test("BlockManager.write() takes the last content of a block written twice", async () => {
  const blocks = new BlockManager(recording(10), { blockCount: 10 });
  await blocks.write(3, "node", content(1));
  await blocks.write(3, "node", content(2));
  expect((await blocks.read(3, "node"))[32]).toBe(2);
  await blocks.flush();
  expect((await blocks.read(3, "node"))[32]).toBe(2);
});

test("BlockManager.write() leaves the caller's bytes as they are", async () => {
  const blocks = new BlockManager(recording(10), { blockCount: 10 });
  const bytes = content(1);
  await blocks.write(3, "node", bytes);
  expect(Buffer.compare(bytes, content(1))).toBe(0);
});

test("BlockManager.readMany() reads runs of blocks in one request each and reports every position once", async () => {
  const device = recording(2000);
  const blocks = new BlockManager(device, { blockCount: 2000 });
  for (let block = 1; block < 2000; block++) await blocks.write(block, "array", content(block % 251));
  await blocks.flush();
  await blocks.write(1500, "array", content(99)); // still in the buffer: what is read all the same
  device.log.length = 0;

  const wanted = Uint32Array.of(
    1500,
    7,
    5,
    6,
    ...Array.from({ length: 600 }, (_, i) => 1000 + i).filter((b) => b !== 1500),
  );
  const seen = new Map<number, number>();
  await blocks.readMany(wanted, "array", (position, bytes, block) => {
    expect(wanted[position]).toBe(block);
    expect(seen.has(position)).toBe(false);
    seen.set(position, bytes[32] as number);
  });
  expect(seen.size).toBe(wanted.length);
  for (const [position, mark] of seen) {
    const block = wanted[position] as number;
    expect(mark).toBe(block === 1500 ? 99 : block % 251);
  }
  expect([...device.log].sort()).toEqual(["read 1000+256", "read 1256+256", "read 1512+88", "read 5+3"]);
});

test("BlockManager.readMany() does not mind unreadable blocks between those that are wanted", async () => {
  const inner = new MemoryDevice({ name: "store", size: 20 * BLOCK_SIZE });
  const written = new BlockManager(inner, { blockCount: 20 });
  for (const block of [5, 7, 12]) await written.write(block, "array", content(block));
  await written.flush();
  const bad = (block: number) => {
    const touches = ({ offset, length }: { offset: number; length: number }) =>
      offset < (block + 1) * BLOCK_SIZE && offset + length > block * BLOCK_SIZE;
    return new BlockManager(new FaultyDevice(inner, { failRead: touches }), { blockCount: 20 });
  };
  const seen: number[] = [];
  await bad(6).readMany(Uint32Array.of(12, 5, 7), "array", (_position, bytes) => void seen.push(bytes[32] as number));
  expect(seen).toEqual([5, 7, 12]);
  await expect(bad(7).readMany(Uint32Array.of(12, 5, 7), "array", () => {})).rejects.toThrow(
    /at 28672 from "store": EIO/,
  );
});

test("BlockManager refuses blocks beyond its count, naming the device", async () => {
  const blocks = new BlockManager(recording(10), { blockCount: 8 });
  await expect(blocks.read(8, "node")).rejects.toThrow('Block 8 of "store" is beyond its 8 blocks');
  await expect(blocks.readMany(Uint32Array.of(1, 9), "node", () => {})).rejects.toThrow("Block 9");
  await expect(blocks.write(0, "node", content(0))).rejects.toThrow("block 0 outside");
});

test("BlockManager.flush() fails with the device's error when a write fails", async () => {
  const device = new FaultyDevice(new MemoryDevice({ name: "store", size: 10 * BLOCK_SIZE }), {
    failWrite: [1],
    errno: "ENOSPC",
  });
  const blocks = new BlockManager(device, { blockCount: 10 });
  await blocks.write(2, "node", content(2));
  await blocks.write(5, "node", content(5));
  await expect(blocks.flush()).rejects.toMatchObject({ errno: "ENOSPC" });
});
