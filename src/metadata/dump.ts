/**
 * The metadata as text, made for people and for `restore`: JSON whose bytes depend on nothing but the content. It comes
 * in pieces, because 2^31 regions can be millions of ranges.
 */
import assert from "node:assert";
import type { Geometry, RegionRange } from "../base/geometry.ts";
import { type Descriptor, descriptorToJson } from "./descriptor.ts";

/** Version of the dump, its field `format`. */
export const DUMP_FORMAT = 1;

/** What goes into a dump. */
export interface DumpContent {
  geometry: Geometry;
  /** Ascending, not overlapping; ranges that touch are joined on the way. Read once, while the dump is. */
  hydratedRanges: Iterable<RegionRange>;
  descriptor: Descriptor | null;
}

/** `pretty`: indented, one range a line. `line`: everything on one line. Both end with a newline. */
export type DumpStyle = "pretty" | "line";

const PIECE_LENGTH = 65536;

/**
 * Yields the dump in pieces of some 64 KiB of text:
 * `{ "format": 1, "size": …, "regionSize": …, "regions": …, "hydrated": [[start, end], …], "descriptor": … }`, sizes in
 * bytes, ranges half-open, ascending and merged.
 */
export function* dumpMetadata(
  { geometry, hydratedRanges, descriptor }: DumpContent,
  style: DumpStyle = "pretty",
): Generator<string, void, undefined> {
  const pretty = style === "pretty";
  const head = {
    format: DUMP_FORMAT,
    size: geometry.size,
    regionSize: geometry.regionSize,
    regions: geometry.regionCount,
  };
  const fields = Object.entries(head).map(([name, value]) =>
    pretty ? `  "${name}": ${value},\n` : `"${name}":${value},`,
  );
  let piece = `${pretty ? "{\n" : "{"}${fields.join("")}${pretty ? '  "hydrated": [' : '"hydrated":['}`;
  let count = 0;
  for (const { start, end } of joinRanges(hydratedRanges, geometry.regionCount)) {
    piece += pretty
      ? `${count === 0 ? "" : ","}\n    [${start}, ${end}]`
      : `${count === 0 ? "" : ","}[${start},${end}]`;
    count++;
    if (piece.length >= PIECE_LENGTH) {
      yield piece;
      piece = "";
    }
  }
  piece += pretty ? `${count === 0 ? "" : "\n  "}],\n  "descriptor": ` : `],"descriptor":`;
  yield `${piece}${formatDescriptor(descriptor, style)}${pretty ? "\n}\n" : "}\n"}`;
}

function formatDescriptor(descriptor: Descriptor | null, style: DumpStyle): string {
  if (descriptor === null) return "null";
  // Whether the metadata's place was blank is a fact of that place, not of the clone: it is not for another one to restore.
  const { blank: _, ...json } = descriptorToJson(descriptor);
  if (style === "line") return JSON.stringify(json);
  return (
    JSON.stringify(json, null, 2)
      .replaceAll("\n", "\n  ")
      // Pairs of numbers on one line, as above. Strings cannot match: a newline in them is written as \n.
      .replaceAll(/\[\n\s*(\d+),\n\s*(\d+)\n\s*\]/g, "[$1, $2]")
  );
}

function* joinRanges(ranges: Iterable<RegionRange>, regionCount: number): Generator<RegionRange, void, undefined> {
  let open: RegionRange | null = null;
  for (const { start, end } of ranges) {
    assert(start >= (open?.end ?? 0) && end >= start && end <= regionCount, `range ${start} to ${end} is out of order`);
    if (end === start) continue;
    if (open !== null && open.end === start) {
      open = { start: open.start, end };
    } else {
      if (open !== null) yield open;
      open = { start, end };
    }
  }
  if (open !== null) yield open;
}
