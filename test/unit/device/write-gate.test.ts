import fc from "fast-check";
import { expect, test } from "vitest";
import { WriteGate, type WriteKind } from "../../../src/device/write-gate.ts";

test("WriteGate never runs a direct and a buffered write at once, and runs all of them", () =>
  fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.record({ kind: fc.constantFrom<WriteKind>("direct", "buffered"), waits: fc.nat(3), fails: fc.boolean() }),
      ),
      async (writes) => {
        const gate = new WriteGate();
        const running = { direct: 0, buffered: 0 };
        const results = await Promise.allSettled(
          writes.map(({ kind, waits, fails }) =>
            gate.run(kind, async () => {
              running[kind] += 1;
              for (let i = 0; i <= waits; i += 1) {
                expect(running.direct === 0 || running.buffered === 0).toBe(true);
                await new Promise((resolve) => setImmediate(resolve));
              }
              running[kind] -= 1;
              if (fails) throw new Error("as wanted");
            }),
          ),
        );
        for (const [index, result] of results.entries()) {
          expect(result.status === "rejected" ? result.reason.message : "").toBe(
            writes[index]?.fails ? "as wanted" : "",
          );
        }
      },
    ),
  ));

test("WriteGate is open to a write that would neither meet one of the other kind nor overtake one that waits", async () => {
  const gate = new WriteGate();
  const isOpen = () => [gate.isOpenTo("direct"), gate.isOpenTo("buffered")];
  expect(isOpen()).toEqual([true, true]);
  let end = () => {};
  const first = gate.run("buffered", () => new Promise<void>((resolve) => (end = resolve)));
  expect(isOpen()).toEqual([false, true]);
  const second = gate.run("direct", async () => expect(isOpen()).toEqual([true, false]));
  expect(isOpen()).toEqual([false, false]);
  end();
  await Promise.all([first, second]);
  expect(isOpen()).toEqual([true, true]);
});

test("WriteGate runs writes of one kind together, but lets the other kind in before those that come after it", async () => {
  const gate = new WriteGate();
  const log: string[] = [];
  const release: (() => void)[] = [];
  const start = (kind: WriteKind, name: string) =>
    gate.run(kind, () => {
      log.push(name);
      return new Promise<void>((resolve) => release.push(resolve));
    });
  const settle = () => new Promise<void>((resolve) => setImmediate(resolve));
  const all = [start("direct", "a"), start("direct", "b"), start("buffered", "c"), start("direct", "d")];
  await settle();
  expect(log).toEqual(["a", "b"]);
  for (const done of release.splice(0)) done();
  await settle();
  expect(log).toEqual(["a", "b", "c"]);
  for (const done of release.splice(0)) done();
  await settle();
  expect(log).toEqual(["a", "b", "c", "d"]);
  for (const done of release.splice(0)) done();
  await Promise.all(all);
});
