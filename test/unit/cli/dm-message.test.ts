// dm-clone's messages, against what `clone_message` of Linux does with them.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseDmMessage } from "../../../src/cli/dm-message.ts";
import { parseTuning } from "../../../src/control/tuning.ts";

describe("parseDmMessage()", () => {
  test.for([
    [["enable_hydration"], { paused: false }],
    [["ENABLE_HYDRATION", "5", "x"], { paused: false }],
    [["disable_hydration"], { paused: true }],
    [["Disable_Hydration", "now"], { paused: true }],
    [["hydration_threshold", "0"], { threshold: 0 }],
    [["hydration_threshold", "007"], { threshold: 7 }],
    [["HYDRATION_THRESHOLD", "4294967295"], { threshold: 4294967295 }],
    [["hydration_threshold", "auto"], { threshold: null }],
    [["hydration_batch_size", "16"], { batchSize: 16 }],
    [["hydration_batch_size", "0"], { batchSize: 1 }],
    [["hydration_batch_size", "auto"], { batchSize: null }],
  ] as const)("takes %j for %j", ([words, changes]) => {
    expect(parseDmMessage(words)).toEqual(changes);
  });

  test.for([
    [["hydration_threshold"]],
    [["hydration_threshold", "1", "2"]],
    [["hydration_threshold", "4294967296"]],
    [["hydration_threshold", "-1"]],
    [["hydration_threshold", "+1"]],
    [["hydration_threshold", "1.5"]],
    [["hydration_threshold", "0x10"]],
    [["hydration_threshold", "1K"]],
    [["hydration_threshold", ""]],
    [["hydration_threshold", "AUTO"]],
    [["hydration_batch_size", "many"]],
    [["hydration"]],
    [["enable_hydration "]],
    [[""]],
    [["no_hydration"]],
  ] as const)("refuses %j", ([words]) => {
    expect(() => parseDmMessage(words)).toThrow(/^Cannot understand the message/);
  });

  test("makes nothing that the control socket would refuse", () => {
    const name = fc.constantFrom("hydration_threshold", "hydration_batch_size");
    fc.assert(
      fc.property(name, fc.integer({ min: 0, max: 2 ** 32 - 1 }), (word, number) => {
        const changes = parseDmMessage([word, `${number}`]);
        expect(parseTuning(changes)).toEqual(changes);
      }),
    );
  });
});
