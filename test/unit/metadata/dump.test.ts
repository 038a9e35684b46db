import { describe, expect, test } from "vitest";
import { Geometry } from "../../../src/base/geometry.ts";
import type { Descriptor } from "../../../src/metadata/descriptor.ts";
import { type DumpContent, type DumpStyle, dumpMetadata } from "../../../src/metadata/dump.ts";

const geometry = new Geometry({ size: 67108864, regionSize: 4096 });
const content: DumpContent = {
  geometry,
  hydratedRanges: [
    { start: 0, end: 12 },
    { start: 64, end: 65 },
  ],
  descriptor: null,
};
const text = (dump: DumpContent, style?: DumpStyle) => [...dumpMetadata(dump, style)].join("");

const descriptor: Descriptor = {
  uuid: "u",
  created: "2026-01-02T03:04:05Z",
  source: { uri: "/a\n[\n1,\n2\n]", size: 67108864, format: "raw", fingerprint: { inode: "12" } },
  destination: { uri: "/b", size: 67108864, fingerprint: {} },
  exactSize: 67108864,
  options: {},
  unreadable: { ranges: [{ start: 1, end: 2 }], inexact: false },
  served: false,
  finalized: null,
};

describe("dumpMetadata()", () => {
  test("prints one range a line, indented", () => {
    expect(text(content)).toBe(`{
  "format": 1,
  "size": 67108864,
  "regionSize": 4096,
  "regions": 16384,
  "hydrated": [
    [0, 12],
    [64, 65]
  ],
  "descriptor": null
}
`);
  });

  test("prints one line where asked to", () => {
    expect(text(content, "line")).toBe(
      '{"format":1,"size":67108864,"regionSize":4096,"regions":16384,"hydrated":[[0,12],[64,65]],"descriptor":null}\n',
    );
  });

  test("prints an empty list where nothing is hydrated", () => {
    const empty = { ...content, hydratedRanges: [] };
    expect(text(empty)).toContain('\n  "hydrated": [],\n');
    expect(text(empty, "line")).toContain('"hydrated":[],');
  });

  test("joins ranges that touch and drops empty ones", () => {
    const hydratedRanges = [
      { start: 0, end: 4 },
      { start: 4, end: 4 },
      { start: 4, end: 9 },
      { start: 9, end: 9 },
      { start: 10, end: 10 },
      { start: 11, end: 16384 },
    ];
    expect(JSON.parse(text({ ...content, hydratedRanges })).hydrated).toEqual([
      [0, 9],
      [11, 16384],
    ]);
  });

  test.for(["pretty", "line"] as const)("holds the descriptor as %s JSON, ranges as pairs", (style) => {
    const dump = text({ ...content, descriptor }, style);
    expect(JSON.parse(dump)).toEqual({
      format: 1,
      size: 67108864,
      regionSize: 4096,
      regions: 16384,
      hydrated: [
        [0, 12],
        [64, 65],
      ],
      descriptor: { ...descriptor, unreadable: { ranges: [[1, 2]], inexact: false } },
    });
    if (style === "pretty") expect(dump).toContain('      "ranges": [\n        [1, 2]\n      ],\n');
  });

  test("refuses ranges out of order or beyond the clone", () => {
    const backwards = [
      { start: 5, end: 6 },
      { start: 0, end: 1 },
    ];
    expect(() => text({ ...content, hydratedRanges: backwards })).toThrow("out of order");
    expect(() => text({ ...content, hydratedRanges: [{ start: 0, end: 16385 }] })).toThrow("out of order");
  });

  test("streams: a piece comes before the ranges are all read, and none is large", () => {
    let read = 0;
    function* ranges() {
      for (; read < 2 ** 20; read++) yield { start: 2 * read, end: 2 * read + 1 };
    }
    const huge = new Geometry({ size: 2 ** 43, regionSize: 4096 });
    let pieces = 0;
    let longest = 0;
    for (const piece of dumpMetadata({ geometry: huge, hydratedRanges: ranges(), descriptor: null })) {
      if (pieces++ === 0) expect(read).toBeLessThan(10000);
      longest = Math.max(longest, piece.length);
    }
    expect(pieces).toBeGreaterThan(100);
    expect(longest).toBeLessThan(70000);
  });
});
