// Where the control socket of a clone is: the rules, without any file.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type ControlledMetadata, controlPaths, fitsSocket, metadataId } from "../../../src/control/control-path.ts";

const FILE: ControlledMetadata = {
  path: "/srv/copy.img.clone",
  identity: { kind: "file", dev: "254:1", ino: "18446744073709551615" },
};
const DEVICE: ControlledMetadata = {
  path: "/dev/sdc",
  identity: { kind: "block", dev: "0:5", ino: "300", rdev: "8:32" },
};

describe("controlPaths()", () => {
  test("begins beside a metadata file, and goes on by device and inode, the user's own directory first", () => {
    expect(controlPaths(FILE, { runtimeDirectory: "/home/me/run", userIds: [1000] })).toEqual([
      "/srv/copy.img.clone.sock",
      "/home/me/run/clone/254:1-18446744073709551615.sock",
      "/run/user/1000/clone/254:1-18446744073709551615.sock",
      "/run/clone/254:1-18446744073709551615.sock",
    ]);
  });

  test("never stands beside a block device, which is named by its own number, whatever its node", () => {
    const paths = controlPaths(DEVICE, { runtimeDirectory: undefined, userIds: [0] });
    expect(paths).toEqual(["/run/user/0/clone/8:32.sock", "/run/clone/8:32.sock"]);
    const other = { path: "/dev/disk/by-id/x", identity: { ...DEVICE.identity, dev: "0:9", ino: "7" } };
    expect(controlPaths(other, { runtimeDirectory: undefined, userIds: [0] })).toEqual(paths);
  });

  test.for(["run", "", undefined])(
    "takes no notice of the runtime directory %j, which is not absolute",
    (runtimeDirectory) => {
      expect(controlPaths(FILE, { runtimeDirectory, userIds: [] })).toEqual([
        "/srv/copy.img.clone.sock",
        "/run/clone/254:1-18446744073709551615.sock",
      ]);
    },
  );

  test("names no place twice", () => {
    const paths = controlPaths(FILE, { runtimeDirectory: "/run/user/0", userIds: [0, 0] });
    expect(paths).toEqual([...new Set(paths)]);
    expect(paths).toHaveLength(3);
  });

  test("never names a path that a socket cannot have, counted in bytes", () => {
    const piece = fc.string({ unit: "grapheme", minLength: 1, maxLength: 60 }).map((text) => text.replaceAll("/", "_"));
    fc.assert(
      fc.property(piece, piece, (directory, name) => {
        const path = `/${directory}/${name}`;
        const paths = controlPaths({ ...FILE, path }, { runtimeDirectory: `/${directory}`, userIds: [0] });
        for (const found of paths) expect(Buffer.byteLength(found)).toBeLessThanOrEqual(107);
        expect(paths.includes(`${path}.sock`)).toBe(Buffer.byteLength(`${path}.sock`) <= 107);
        expect(paths.at(-1)).toBe("/run/clone/254:1-18446744073709551615.sock");
      }),
    );
  });
});

test("fitsSocket() counts bytes, not characters", () => {
  expect(fitsSocket("a".repeat(107))).toBe(true);
  expect(fitsSocket("a".repeat(108))).toBe(false);
  expect(fitsSocket("ä".repeat(54))).toBe(false);
});

test("metadataId() tells a file of one file system from that of another, and a device from both", () => {
  const ids = [
    FILE.identity,
    { ...FILE.identity, dev: "254:2" },
    { ...FILE.identity, ino: "1" },
    DEVICE.identity,
    { ...DEVICE.identity, rdev: "8:33" },
  ].map(metadataId);
  expect(new Set(ids).size).toBe(ids.length);
});
