import { describe, expect, test } from "vitest";
import { InFlight } from "../../../src/engine/in-flight.ts";
import { runParts } from "../../../src/engine/run-parts.ts";
import { VirtualClock, whenIdle } from "../../support/virtual-clock.ts";

describe("runParts()", () => {
  test("works on so many parts at once, each made just before its work begins", async () => {
    const clock = new VirtualClock();
    const log: string[] = [];
    function* parts(): Generator<number> {
      for (let part = 0; part < 5; part++) {
        log.push(`make ${part}`);
        yield part;
      }
    }
    let running = 0;
    await runParts(parts(), 2, async (part) => {
      log.push(`begin ${part}`);
      expect(++running).toBeLessThanOrEqual(2);
      await clock.sleep(10 * (part + 1));
      running--;
    });
    expect(log).toEqual([0, 1, 2, 3, 4].flatMap((part) => [`make ${part}`, `begin ${part}`]));
  });

  test("begins no more parts after an error, and throws it when all that had begun have ended", async () => {
    const clock = new VirtualClock();
    const log: string[] = [];
    const running = runParts([1, 2, 3, 4].values(), 2, async (part) => {
      await clock.sleep(part === 1 ? 10 : 500);
      log.push(`${part} at ${clock.now()}`);
      throw new Error(`part ${part}`);
    });
    await expect(running).rejects.toThrow("part 1");
    expect(log).toEqual(["1 at 10", "2 at 500"]);
  });

  test("does nothing where there is no part", async () => {
    await runParts([].values(), 2, () => Promise.reject(new Error("never")));
  });
});

describe("InFlight", () => {
  test("is idle when all that began has ended, also what begins meanwhile", async () => {
    const inFlight = new InFlight();
    await inFlight.idle();
    inFlight.begin();
    inFlight.begin();
    let idle = false;
    const waiting = inFlight.idle().then(() => {
      idle = true;
    });
    inFlight.end();
    await whenIdle();
    expect(idle).toBe(false);
    inFlight.end();
    inFlight.begin(); // before those who wait have had their turn
    await whenIdle();
    expect(idle).toBe(false);
    inFlight.end();
    await waiting;
    expect(inFlight.count).toBe(0);
  });
});
