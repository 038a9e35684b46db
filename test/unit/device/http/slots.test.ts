import { expect, test } from "vitest";
import { Slots } from "../../../../src/device/http/slots.ts";

test("Slots admits so many at once, in the order of arrival, and the next one also after a failure", async () => {
  const slots = new Slots(2);
  const begun: number[] = [];
  const ends: ((error?: Error) => void)[] = [];
  const all = [0, 1, 2, 3, 4].map((index) =>
    slots.run(async () => {
      begun.push(index);
      await new Promise<void>((resolve, reject) => {
        ends[index] = (error) => (error === undefined ? resolve() : reject(error));
      });
      return index;
    }),
  );
  const settled = Promise.allSettled(all);
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  await turn();
  expect(begun).toEqual([0, 1]);
  ends[1]?.(new Error("broken"));
  await turn();
  expect(begun).toEqual([0, 1, 2]);
  ends[0]?.();
  ends[2]?.();
  await turn();
  expect(begun).toEqual([0, 1, 2, 3, 4]);
  ends[3]?.();
  ends[4]?.();
  expect((await settled).map(({ status }) => status)).toEqual(["fulfilled", "rejected", ...Array(3).fill("fulfilled")]);
  expect(await slots.run(async () => "free again")).toBe("free again");
});
