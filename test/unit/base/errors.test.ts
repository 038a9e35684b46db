import { readFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { BusyError, CloneError, DeviceError, errnoOf, MetadataError, UsageError } from "../../../src/base/errors.ts";

test("CloneError and its kin carry code, message, hint, cause and their own name", () => {
  const cause = new Error("because");
  const options = { hint: "Do this.", cause };
  const errors = [
    { error: new CloneError("differs", "a", options), name: "CloneError", code: "differs" },
    { error: new DeviceError("a", options), name: "DeviceError", code: "failed" },
    { error: new MetadataError("a", options), name: "MetadataError", code: "damaged" },
    { error: new UsageError("a", options), name: "UsageError", code: "usage" },
    { error: new BusyError("a", options), name: "BusyError", code: "busy" },
  ];
  for (const { error, name, code } of errors) {
    expect(error).toBeInstanceOf(CloneError);
    expect(error).toBeInstanceOf(Error);
    expect({ ...error, message: error.message, cause: error.cause }).toMatchObject({
      name,
      code,
      message: "a",
      hint: "Do this.",
      cause,
    });
    expect(String(error)).toBe(`${name}: a`);
  }
});

test("CloneError has no cause and no hint where none was given", () => {
  const error = new CloneError("failed", "a");
  expect("cause" in error).toBe(false);
  expect(error.hint).toBeUndefined();
});

test("DeviceError, MetadataError and BusyError say where, why and who", () => {
  expect(new DeviceError("a", { errno: "EIO", offset: 2 ** 41, length: 512 })).toMatchObject({
    errno: "EIO",
    offset: 2 ** 41,
    length: 512,
  });
  expect(new MetadataError("a", { block: 7 }).block).toBe(7);
  expect(new MetadataError("a").block).toBeUndefined();
  expect(new BusyError("a", { pid: 42 }).pid).toBe(42);
});

test("errnoOf() finds the symbolic errno of device and system errors, and none in anything else", async () => {
  expect(errnoOf(new DeviceError("a", { errno: "ENOSPC" }))).toBe("ENOSPC");
  expect(errnoOf(new DeviceError("a"))).toBeUndefined();
  const missing = await readFile("/does/not/exist").catch((error: unknown) => error);
  expect(errnoOf(missing)).toBe("ENOENT");
  const mistake = await readFile(Symbol("x") as never).catch((error: unknown) => error);
  expect(mistake).toMatchObject({ code: "ERR_INVALID_ARG_TYPE" });
  expect(errnoOf(mistake)).toBeUndefined();
  for (const other of [undefined, null, "EIO", { code: "EIO" }, new UsageError("a"), new Error("EIO")]) {
    expect(errnoOf(other)).toBeUndefined();
  }
});
