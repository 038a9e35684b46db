// What an error of the source says about asking again.
import { describe, expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../src/base/errors.ts";
import { isOfWholeSource, isTransient } from "../../../src/engine/source-errors.ts";

const error = (errno: string): DeviceError => new DeviceError(`Cannot read: ${errno}`, { errno });

describe("An error of the source", () => {
  test.for(["EIO", "EAGAIN", "ENOMEM"])("is of the bytes asked for where it is %s, and may pass", (errno) => {
    expect(isOfWholeSource(error(errno))).toBe(false);
    expect(isTransient(error(errno))).toBe(true);
  });

  test.for(["ENODEV", "ESTALE", "EPERM", "EPROTO"])("is of the whole source where it is %s, and does not", (errno) => {
    expect(isOfWholeSource(error(errno))).toBe(true);
    expect(isTransient(error(errno))).toBe(false);
  });

  test("is of the whole source where that is away, and may pass", () => {
    expect(isOfWholeSource(error("ECONNREFUSED"))).toBe(true);
    expect(isTransient(error("ECONNREFUSED"))).toBe(true);
  });

  test("is final where the source has changed", () => {
    const changed = new ChangedError("Cannot read", { difference: "its size is 1 now" });
    expect(isOfWholeSource(changed)).toBe(true);
    expect(isTransient(changed)).toBe(false);
  });

  test("is not the device's where it is a mistake", () => {
    expect(isTransient(new TypeError("x"))).toBe(false);
  });
});
