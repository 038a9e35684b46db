// What programs say, made into an error's reason and a hint. The lines are those of qemu-nbd 7.2 and nbdkit 1.32.
import { describe, expect, test } from "vitest";
import { explainMissing, explainWords, LOCKED_HINT } from "../../../src/clone/qemu-words.ts";

describe("explainWords()", () => {
  test("takes the reason out of a line that repeats what was to be opened, whatever stands in that", () => {
    const line = `qemu-nbd: Failed to blk_new_open 'json:{"filename":"/a': b"}': Image not in VDI format`;
    expect(explainWords([line])).toEqual({ reason: "Image not in VDI format", hint: undefined });
  });

  test.each([
    ["rbd", "qemu-block-rbd"],
    ["iscsi", "qemu-block-iscsi"],
    ["gluster+tcp", "qemu-block-gluster"],
  ])("names the packages of the driver %s", (driver, fedora) => {
    for (const kind of ["protocol", "driver"]) {
      const { reason, hint } = explainWords([
        `qemu-nbd: Failed to blk_new_open '${driver}:x': Unknown ${kind} '${driver}'`,
      ]);
      expect(reason).toBe(`Unknown ${kind} '${driver}'`);
      expect(hint).toContain("qemu-block-extra");
      expect(hint).toContain(fedora);
    }
  });

  test("knows no package of a driver that there is not", () => {
    expect(explainWords(["qemu-nbd: Failed to blk_new_open 'x': Unknown driver 'nosuch'"]).hint).toBeUndefined();
  });

  test("tells of an image that somebody writes to", () => {
    const lines = [
      `qemu-nbd: Failed to blk_new_open 'x': Failed to get shared "write" lock`,
      "Is another process using the image [x]?",
    ];
    expect(explainWords(lines)).toEqual({ reason: 'Failed to get shared "write" lock', hint: LOCKED_HINT });
  });

  test("leaves the words of other programs alone", () => {
    expect(explainWords(["nbdkit: error: cannot open plugin", "Use 'nbdkit --help'"])).toEqual({ hint: undefined });
    expect(explainWords([])).toEqual({ hint: undefined });
  });
});

test("explainMissing() names the packages of programs that are known, by whatever path", () => {
  expect(explainMissing("qemu-nbd")).toBe(
    "Install the package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL).",
  );
  expect(explainMissing("/usr/sbin/nbdkit")).toContain("nbdkit");
  expect(explainMissing("my-own")).toBeUndefined();
});
