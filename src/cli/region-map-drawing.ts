/** Draws which regions are hydrated, many regions a character. */
import type { StatusReport } from "../clone/clone-status.ts";

/** Rows of characters a map takes at most. */
const MOST_ROWS = 16;
/** From nothing to everything hydrated. */
const SHADES = "·░▒▓█";

/**
 * Lines of at most `width` characters: one character stands for equally many regions, drawn the fuller the more of them
 * are hydrated, `!` where one is unreadable. The last line says what means what.
 */
export function drawMap({ status, hydratedRanges, unreadable }: StatusReport, width: number): string[] {
  const perCell = Math.ceil(status.regions / (width * MOST_ROWS));
  const cells = Math.ceil(status.regions / perCell);
  const hydrated = new Float64Array(cells);
  for (const { start, end } of hydratedRanges) {
    for (let region = start; region < end; ) {
      const cell = Math.floor(region / perCell);
      const next = Math.min(end, (cell + 1) * perCell);
      hydrated[cell] = (hydrated[cell] as number) + next - region;
      region = next;
    }
  }
  const drawing = Array.from(hydrated, (count, cell) =>
    shade(count, Math.min(perCell, status.regions - cell * perCell)),
  );
  for (const { start, end } of unreadable) {
    for (let cell = Math.floor(start / perCell); cell * perCell < end; cell++) drawing[cell] = "!";
  }
  const lines = [];
  for (let cell = 0; cell < cells; cell += width) lines.push(drawing.slice(cell, cell + width).join(""));
  const legend = `${SHADES[0]} none  ░▒▓ some  █ all hydrated${unreadable.length > 0 ? "  ! unreadable" : ""}`;
  return [...lines, `${perCell} ${perCell === 1 ? "region" : "regions"} a character: ${legend}`];
}

function shade(count: number, of: number): string {
  const partial = SHADES.length - 2;
  if (count === 0) return SHADES[0] as string;
  if (count === of) return SHADES[SHADES.length - 1] as string;
  return SHADES[1 + Math.min(partial - 1, Math.floor((count / of) * partial))] as string;
}
