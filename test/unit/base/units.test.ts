import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatDuration, formatExactSize, formatSize, parseRate, parseSize } from "../../../src/base/units.ts";

describe("parseSize()", () => {
  test.for([
    ["0", 0],
    ["65536", 65536],
    ["512B", 512],
    ["3s", 1536],
    ["64k", 65536],
    ["64K", 65536],
    ["64KiB", 65536],
    ["64kib", 65536],
    ["64KB", 64000],
    ["5M", 5 * 2 ** 20],
    ["5MB", 5_000_000],
    ["2GiB", 2 ** 31],
    ["2GB", 2_000_000_000],
    ["8T", 2 ** 43],
    ["1TB", 1e12],
    ["7P", 7 * 2 ** 50],
    ["1PB", 1e15],
    [" 4K ", 4096],
    ["9007199254740991", Number.MAX_SAFE_INTEGER],
  ] as const)("takes %j as %i bytes", ([text, bytes]) => {
    expect(parseSize(text)).toBe(bytes);
  });

  test.for(["", " ", "K", "-1", "+1", "1.5G", "1e3", "0x10", "4 K", "4X", "4KiBs", "4kk", "١", "NaN", "Infinity"])(
    "refuses %j, quoting it",
    (text) => {
      expect(() => parseSize(text)).toThrow(
        new RangeError(`"${text}" is not a size (a whole number, then nothing, B, s, K, M, G, T, P or KB, MB, …)`),
      );
    },
  );

  test.for(["9007199254740992", "8P", "8192T", "99999999999999999999"])("refuses %s as too large", (text) => {
    expect(() => parseSize(text)).toThrow(new RangeError(`"${text}" is too large`));
  });

  test("reads back every size that formatExactSize() writes", () =>
    fc.assert(
      fc.property(
        fc.oneof(
          fc.maxSafeNat(),
          fc.tuple(fc.nat(1023), fc.nat(5)).map(([n, power]) => Math.min(n * 1024 ** power, Number.MAX_SAFE_INTEGER)),
        ),
        (bytes) => {
          const text = formatExactSize(bytes);
          expect(parseSize(text)).toBe(bytes);
          expect(text).toMatch(/^\d+[KMGTP]?$/);
        },
      ),
    ));
});

test("formatExactSize() takes the largest suffix that divides the size", () => {
  const written = [0, 1, 1023, 1024, 1536, 65536, 2 ** 20 + 1024, 2 ** 30, 2 ** 40, 3 * 2 ** 50].map(formatExactSize);
  expect(written).toEqual(["0", "1", "1023", "1K", "1536", "64K", "1025K", "1G", "1T", "3P"]);
});

describe("parseRate()", () => {
  test.for([
    ["100M", 100 * 2 ** 20],
    ["100M/s", 100 * 2 ** 20],
    ["100MB/S", 100_000_000],
    ["512", 512],
    ["0", null],
    ["0/s", null],
    ["max", null],
    [" MAX ", null],
  ] as const)("takes %j as %s bytes per second", ([text, rate]) => {
    expect(parseRate(text)).toBe(rate);
  });

  test.for(["-1", "", "/s", "fast", "1.5M", "100M/m", "100M/s/s"])("refuses %j, quoting it", (text) => {
    expect(() => parseRate(text)).toThrow(
      new RangeError(`"${text}" is not a rate (bytes per second, as 100M or 100M/s; 0 or max is unlimited)`),
    );
  });
});

describe("formatSize()", () => {
  test.for([
    [0, "0 B"],
    [1, "1 B"],
    [1023, "1023 B"],
    [1024, "1.00 KiB"],
    [1536, "1.50 KiB"],
    [10_234, "9.99 KiB"],
    [10_235, "10.0 KiB"],
    [102_348, "99.9 KiB"],
    [102_349, "100 KiB"],
    [1023 * 1024, "1023 KiB"],
    [1023.5 * 1024 - 1, "1023 KiB"],
    [1023.5 * 1024, "1.00 MiB"],
    [1.5 * 2 ** 30, "1.50 GiB"],
    [2 ** 43, "8.00 TiB"],
    [Number.MAX_SAFE_INTEGER, "8.00 PiB"],
  ] as const)("writes %i as %s", ([bytes, text]) => {
    expect(formatSize(bytes)).toBe(text);
  });

  test("has three figures, or all below a KiB, and is within half a figure of the size", () =>
    fc.assert(
      fc.property(fc.maxSafeNat(), (bytes) => {
        const [number = "", unit = ""] = formatSize(bytes).split(" ");
        const power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].indexOf(unit);
        expect(power).toBeGreaterThanOrEqual(0);
        if (power > 0) expect(number).toMatch(/^(\d\.\d\d|\d\d\.\d|\d{3}|10[01]\d|102[0-3])$/);
        const decimals = number.split(".")[1]?.length ?? 0;
        expect(Math.abs(Number(number) * 1024 ** power - bytes)).toBeLessThanOrEqual(
          (0.5001 * 1024 ** power) / 10 ** decimals,
        );
      }),
      { numRuns: 1000 },
    ));
});

test.for([
  [0, "0:00"],
  [7, "0:07"],
  [7.4, "0:07"],
  [59.5, "1:00"],
  [754, "12:34"],
  [3599.6, "1:00:00"],
  [12_307, "3:25:07"],
  [86_399, "23:59:59"],
  [86_400, "1d 00:00:00"],
  [185_107, "2d 03:25:07"],
] as const)("formatDuration() writes %f seconds as %s", ([seconds, text]) => {
  expect(formatDuration(seconds)).toBe(text);
});
