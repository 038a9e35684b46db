// Drawing over what was drawn before, on a terminal that is played by a model of the few controls that are used.
import { describe, expect, test } from "vitest";
import { Redrawing } from "../../../src/cli/redrawing.ts";

const ESCAPE = "\u001b";

/** A screen of `rows` lines, which scrolls; knows up, clear line, clear below, wrapping on and off. */
class Screen {
  lines: string[] = [""];
  writes = 0;
  wraps = true;
  readonly rows: number;
  #row = 0;

  constructor(rows: number) {
    this.rows = rows;
  }

  write(text: string): boolean {
    this.writes++;
    const shown = text.replaceAll(ESCAPE, "^"); // which no text here has
    for (const [token, up] of shown.matchAll(/\^\[(\d+)A|\^\[\?7[hl]|\^\[[KJ]|\n|[^^\n]+/g)) {
      if (up !== undefined) this.#row = Math.max(0, this.lines.length - this.rows, this.#row - Number(up));
      else if (token.startsWith("^[?7")) this.wraps = token.endsWith("h");
      else if (token === "^[J") this.lines.splice(this.#row + 1);
      else if (token === "\n") this.#down();
      else if (token !== "^[K") this.lines[this.#row] = token;
    }
    return true;
  }

  #down(): void {
    this.#row++;
    if (this.#row === this.lines.length) this.lines.push("");
  }
}

describe("Redrawing", () => {
  test("shows new lines in place of the old ones, in one write each, below what was there before", () => {
    const screen = new Screen(24);
    screen.write("$ clone status\n");
    const drawing = new Redrawing(screen);
    drawing.show(["one", "two", "three"]);
    drawing.show(["1", "2", "3"]);
    expect(screen.lines.slice(0, 4)).toEqual(["$ clone status", "1", "2", "3"]);
    expect(screen.writes).toBe(3);
    expect(screen.wraps).toBe(true);
  });

  test("leaves nothing of a longer text behind", () => {
    const screen = new Screen(24);
    const drawing = new Redrawing(screen);
    drawing.show(["one", "two", "three"]);
    drawing.show(["1"]);
    expect(screen.lines[0]).toBe("1");
    expect(screen.lines.slice(2)).toEqual([]);
    drawing.show(["one", "two", "three"]);
    expect(screen.lines.slice(0, 3)).toEqual(["one", "two", "three"]);
  });

  test("shows what does not fit on the screen below, whole", () => {
    const screen = new Screen(2);
    const drawing = new Redrawing(screen);
    drawing.show(["one", "two", "three"]);
    drawing.show(["1", "2", "3"]);
    expect(screen.lines.slice(0, 6)).toEqual(["one", "two", "three", "1", "2", "3"]);
  });

  test("keeps lines that are too long from wrapping, and the terminal as it was", () => {
    const written: string[] = [];
    const terminal = { rows: 24, write: (text: string | Uint8Array) => written.push(String(text)) > 0 };
    new Redrawing(terminal).show(["x".repeat(500)]);
    expect(written).toHaveLength(1);
    expect(written[0]?.replaceAll(ESCAPE, "^")).toMatch(/^\^\[\?7lx{500}\^\[K\n\^\[\?7h/);
  });
});
