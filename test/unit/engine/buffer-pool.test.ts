import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { BufferPool } from "../../../src/engine/buffer-pool.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const SMALL = 65_536;
const LARGE = 2 ** 20;

/** A pool of `capacity` bytes, which may be changed at any time, and what it has allocated and lent. */
function makePool(capacity: number) {
  const state = { capacity, made: [] as Uint8Array[], lent: [] as Uint8Array[], served: [] as string[] };
  const buffers = new BufferPool({
    capacity: () => state.capacity,
    largest: LARGE,
    allocate: (byteLength) => {
      const buffer = new Uint8Array(byteLength);
      state.made.push(buffer);
      return buffer;
    },
  });
  /** Notes who is served, in order. */
  const wait = (name: string, byteLength = SMALL): void => {
    void buffers.acquire(byteLength).then((buffer) => {
      state.served.push(name);
      state.lent.push(buffer);
    });
  };
  /** Takes back the one that has been lent for the longest. */
  const release = async (): Promise<void> => {
    buffers.release(state.lent.shift() as Uint8Array);
    await whenIdle();
  };
  return Object.assign(state, { buffers, wait, release });
}

describe("BufferPool", () => {
  test("makes a buffer only where none is free, and never lends more than its capacity", async () => {
    const { made, buffers } = makePool(3 * SMALL);
    const first = await buffers.acquire(SMALL);
    buffers.release(first);
    expect(await buffers.acquire(1)).toBe(first);
    expect(made).toHaveLength(1);
    for (let i = 0; i < 3; i++) void buffers.acquire(SMALL);
    await whenIdle();
    expect(made).toHaveLength(3);
  });

  test("lends many small ones or few large ones, as many bytes of either", async () => {
    const pool = makePool(4 * LARGE);
    for (let i = 0; i < 100; i++) pool.wait("small", 10_000);
    await whenIdle();
    expect(pool.served).toHaveLength((4 * LARGE) / SMALL);
    while (pool.lent.length > 0) await pool.release();
    expect(pool.served).toHaveLength(100);
    for (let i = 0; i < 9; i++) pool.wait("large", LARGE);
    await whenIdle();
    expect(pool.served.slice(100)).toHaveLength(4);
    expect(pool.lent.every(({ length }) => length === LARGE)).toBe(true);
  });

  test("lends one buffer where its capacity is less than that", async () => {
    const pool = makePool(1);
    pool.wait("first", LARGE);
    pool.wait("second");
    await whenIdle();
    expect(pool.served).toEqual(["first"]);
    await pool.release();
    expect(pool.served).toEqual(["first", "second"]);
  });

  test("lends no buffer twice, and serves those who wait in the order they came", async () => {
    const pool = makePool(2 * SMALL);
    for (const name of ["a", "b", "c", "d", "e"]) pool.wait(name);
    await whenIdle();
    expect(pool.served).toEqual(["a", "b"]);
    expect(pool.lent[0]).not.toBe(pool.lent[1]);
    await pool.release();
    expect(pool.served).toEqual(["a", "b", "c"]);
    await pool.release();
    await pool.release();
    expect(pool.served).toEqual(["a", "b", "c", "d", "e"]);
    expect(pool.made).toHaveLength(2);
  });

  test("takes no buffer back twice, nor one it did not lend", async () => {
    const { buffers } = makePool(2 * SMALL);
    const buffer = await buffers.acquire(SMALL);
    buffers.release(buffer);
    expect(() => buffers.release(buffer)).toThrow("a buffer was released that is not lent");
    expect(() => buffers.release(new Uint8Array(8))).toThrow("a buffer was released that is not lent");
    expect(() => buffers.acquire(LARGE + 1)).toThrow(`no buffer has ${LARGE + 1} bytes`);
  });

  test("follows a capacity that changes: shrunk it takes in before it lends again, grown it lends more", async () => {
    const pool = makePool(3 * SMALL);
    for (const name of ["a", "b", "c"]) pool.wait(name);
    await whenIdle();
    pool.capacity = SMALL;
    for (const name of ["d", "e", "f", "g"]) pool.wait(name);
    await pool.release();
    await pool.release();
    expect(pool.served).toHaveLength(3);
    await pool.release();
    expect(pool.served.slice(3)).toEqual(["d"]);
    pool.capacity = 3 * SMALL;
    await pool.release();
    expect(pool.served.slice(3)).toEqual(["d", "e", "f", "g"]);
    expect(pool.made).toHaveLength(3);
  });

  test("lets nobody overtake those who wait: not a smaller one, nor where its capacity has grown meanwhile", async () => {
    const pool = makePool(LARGE);
    pool.wait("holder");
    pool.wait("large", LARGE);
    pool.wait("small");
    await whenIdle();
    expect(pool.served).toEqual(["holder"]);
    pool.capacity = 4 * LARGE;
    pool.wait("last");
    await whenIdle();
    expect(pool.served).toEqual(["holder", "large", "small", "last"]);
  });

  test("lets go of what is free where it is of another size than is asked for: it never has more than its capacity", async () => {
    const pool = makePool(2 * LARGE);
    const useAll = async (byteLength: number) => {
      pool.made.length = 0;
      while (pool.lent.length * byteLength < 2 * LARGE) {
        pool.wait("", byteLength);
        await whenIdle();
      }
      while (pool.lent.length > 0) await pool.release();
      return pool.made.length;
    };
    expect(await useAll(LARGE)).toBe(2);
    expect(await useAll(LARGE)).toBe(0);
    expect(await useAll(SMALL)).toBe(32);
    expect(await useAll(LARGE)).toBe(2);
  });

  test("never lends more than its capacity, whatever is asked for, and forgets nobody", async () => {
    const length = fc.oneof(fc.integer({ min: 1, max: LARGE }), fc.integer({ min: 1, max: SMALL }));
    const capacities = fc.integer({ min: LARGE, max: 6 * LARGE });
    await fc.assert(
      fc.asyncProperty(fc.array(length), capacities, async (lengths, capacity) => {
        const allocate = (byteLength: number) => ({ length: byteLength }) as Uint8Array;
        const buffers = new BufferPool({ capacity: () => capacity, largest: LARGE, allocate });
        const lent = new Set<Uint8Array>();
        let [bytes, served] = [0, 0];
        for (const wanted of lengths) {
          void buffers.acquire(wanted).then((buffer) => {
            served++;
            bytes += buffer.length;
            if (buffer.length < wanted || bytes > capacity || lent.has(buffer)) served = Number.NaN;
            lent.add(buffer);
          });
        }
        for (await whenIdle(); lent.size > 0; await whenIdle()) {
          const [buffer] = lent as Iterable<Uint8Array>;
          lent.delete(buffer as Uint8Array);
          bytes -= (buffer as Uint8Array).length;
          buffers.release(buffer as Uint8Array);
        }
        expect(served).toBe(lengths.length);
      }),
    );
  });
});
