/**
 * Lists of regions that must fit a fixed space. A list that does not is made coarser, never shorter: neighbours are
 * joined over the smallest gaps, so that every region named before is still named, and as few others as possible.
 */
import type { RegionRange } from "../base/geometry.ts";

/** Sorts ranges and joins those that overlap or touch. Empty ranges vanish. */
export function normalizeRanges(ranges: Iterable<RegionRange>): RegionRange[] {
  const sorted = [...ranges].filter(({ start, end }) => end > start).sort((a, b) => a.start - b.start);
  const merged: RegionRange[] = [];
  for (const { start, end } of sorted) {
    const last = merged.at(-1);
    if (last !== undefined && start <= last.end) last.end = Math.max(last.end, end);
    else merged.push({ start, end });
  }
  return merged;
}

/** Characters that the ranges take as JSON: `[0,12],[64,65]`, without the outer brackets. */
export function encodedLength(ranges: readonly RegionRange[]): number {
  let length = Math.max(ranges.length - 1, 0);
  for (const { start, end } of ranges) length += 3 + String(start).length + String(end).length;
  return length;
}

/**
 * Joins the closest neighbours until the ranges take at most `maxLength` characters as JSON, or are a single one.
 * @param ranges normalized
 */
export function coarsenRanges(ranges: readonly RegionRange[], maxLength: number): RegionRange[] {
  let excess = encodedLength(ranges) - maxLength;
  const joined = new Uint8Array(ranges.length); // 1: joined to the range before it
  for (const { index, saving } of gapsBySize(ranges)) {
    if (excess <= 0) break;
    joined[index] = 1;
    excess -= saving;
  }
  const result: RegionRange[] = [];
  ranges.forEach(({ start, end }, index) => {
    const last = result.at(-1);
    if (joined[index] === 1 && last !== undefined) last.end = end;
    else result.push({ start, end });
  });
  return result;
}

/** The gaps before each range but the first, smallest first; `saving` is what `b],[c,` takes. */
function gapsBySize(ranges: readonly RegionRange[]): { index: number; gap: number; saving: number }[] {
  const gaps: { index: number; gap: number; saving: number }[] = [];
  for (let index = 1; index < ranges.length; index++) {
    const before = ranges[index - 1];
    const after = ranges[index];
    if (before === undefined || after === undefined) continue;
    const saving = String(before.end).length + String(after.start).length + 4;
    gaps.push({ index, gap: after.start - before.end, saving });
  }
  return gaps.sort((a, b) => a.gap - b.gap || a.index - b.index);
}
