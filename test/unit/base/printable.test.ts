import { Chalk } from "chalk";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { printable, printableLine } from "../../../src/base/printable.ts";

/** What a terminal might obey, or what turns around what is written. */
const HARMFUL = /[\p{Cc}\p{Bidi_Control}]/u;

/** A text with as many control characters as others. */
const hostile = fc
  .array(fc.oneof(fc.constantFrom("\u001b", "\u009b", "\u0007", "\n", "\r", "\u202e", "\u2066", "["), fc.string()))
  .map((pieces) => pieces.join(""));

describe("printable()", () => {
  test("leaves nothing that a terminal obeys, and all else as it is", () => {
    fc.assert(
      fc.property(hostile, (text) => {
        expect(printable(text)).not.toMatch(HARMFUL);
        if (!HARMFUL.test(text)) expect(printable(text)).toBe(text);
      }),
    );
  });

  test("leaves JSON the same JSON", () => {
    fc.assert(
      fc.property(hostile, (text) => {
        expect(JSON.parse(printable(JSON.stringify({ [text]: text })))).toEqual({ [text]: text });
      }),
    );
  });

  test("writes out what sets a title, moves the cursor, or writes backwards", () => {
    expect(printable("a\u001b]0;title\u0007b\u202e\n")).toBe("a\\u001b]0;title\\u0007b\\u202e\\u000a");
  });
});

describe("printableLine()", () => {
  test("keeps the colours that this program uses, where it uses any", () => {
    const chalk = new Chalk({ level: 3 });
    const line = `${chalk.red("clone:")} ${chalk.dim("a")} ${chalk.yellow.bold("b")} ${chalk.green("c")} ${chalk.cyan("d")}`;
    expect(printableLine(line, { colours: true, lines: false })).toBe(line);
    expect(printableLine(line, { colours: false, lines: false })).not.toMatch(HARMFUL);
  });

  test("keeps nothing else that begins like a colour: no hidden text, no cursor that moves", () => {
    for (const sequence of ["\u001b[8m", "\u001b[7m", "\u001b[2K", "\u001b[1A", "\u001b[31;8m", "\u001b[48;5;1m"]) {
      expect(printableLine(`x${sequence}y`, { colours: true, lines: true })).toBe(`x\\u001b${sequence.slice(1)}y`);
    }
  });

  test("lets nobody's text begin a line of its own, unless several are wanted", () => {
    expect(printableLine("a\nclone: b", { colours: false, lines: false })).toBe("a\\u000aclone: b");
    expect(printableLine("a\nb\r", { colours: false, lines: true })).toBe("a\nb\\u000d");
  });
});
