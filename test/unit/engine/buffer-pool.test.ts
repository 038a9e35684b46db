import { expect, test } from "vitest";
import { BufferPool } from "../../../src/engine/buffer-pool.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

function pool(count: number) {
  const made: Uint8Array[] = [];
  const buffers = new BufferPool(
    () => count,
    () => {
      made.push(new Uint8Array(8));
      return made.at(-1) as Uint8Array;
    },
  );
  return { made, buffers };
}

test("BufferPool makes a buffer only where none is free, and never more than its count", async () => {
  const { made, buffers } = pool(3);
  const first = await buffers.acquire();
  buffers.release(first);
  expect(await buffers.acquire()).toBe(first);
  expect(made).toHaveLength(1);
  await buffers.acquire();
  await buffers.acquire();
  void buffers.acquire();
  await whenIdle();
  expect(made).toHaveLength(3);
});

test("BufferPool lends no buffer twice, and serves those who wait in the order they came", async () => {
  const { buffers } = pool(2);
  const [a, b] = [await buffers.acquire(), await buffers.acquire()];
  expect(a).not.toBe(b);
  const served: [string, Uint8Array][] = [];
  const wait = (name: string) => void buffers.acquire().then((buffer) => served.push([name, buffer]));
  for (const name of ["first", "second", "third"]) wait(name);
  await whenIdle();
  expect(served).toEqual([]);
  buffers.release(b);
  await whenIdle();
  buffers.release(a);
  await whenIdle();
  expect(served.map(([name]) => name)).toEqual(["first", "second"]);
  expect(served[0]?.[1]).toBe(b);
  expect(served[1]?.[1]).toBe(a);
  buffers.release(a);
  await whenIdle();
  expect(served[2]?.[1]).toBe(a);
});

test("BufferPool takes no buffer back twice, nor one it did not lend", async () => {
  const { buffers } = pool(2);
  const buffer = await buffers.acquire();
  buffers.release(buffer);
  expect(() => buffers.release(buffer)).toThrow("a buffer was released that is not lent");
  expect(() => buffers.release(new Uint8Array(8))).toThrow("a buffer was released that is not lent");
});

test("BufferPool follows a count that changes: shrunk it takes in before it lends again, grown it lends more", async () => {
  let count = 3;
  const buffers = new BufferPool(
    () => count,
    () => new Uint8Array(8),
  );
  const lent = [await buffers.acquire(), await buffers.acquire(), await buffers.acquire()];
  const served: number[] = [];
  const wait = (index: number) => void buffers.acquire().then((buffer) => served.push(index) && lent.push(buffer));
  const release = async () => {
    buffers.release(lent.shift() as Uint8Array);
    await whenIdle();
  };
  count = 1;
  for (const index of [0, 1, 2, 3]) wait(index);
  await release();
  await release();
  expect(served).toEqual([]);
  await release();
  expect(served).toEqual([0]);
  count = 3;
  await release();
  expect(served).toEqual([0, 1, 2, 3]);
  expect(lent).toHaveLength(3);
});

test("BufferPool lets nobody overtake those who wait, also where its count has grown meanwhile", async () => {
  let count = 1;
  const buffers = new BufferPool(
    () => count,
    () => new Uint8Array(8),
  );
  await buffers.acquire();
  const served: string[] = [];
  void buffers.acquire().then(() => served.push("first"));
  count = 2;
  void buffers.acquire().then(() => served.push("second"));
  await whenIdle();
  expect(served).toEqual(["first"]);
});
