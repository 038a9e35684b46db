// What is done to a command line before the parser sees it.
import { describe, expect, test } from "vitest";
import { prepareArguments } from "../../../src/cli/arguments.ts";
import { commandWords } from "../../../src/clone/command-text.ts";

describe("prepareArguments()", () => {
  test("makes one argument of [ COMMAND … ], whatever its words look like", () => {
    const [create, source, destination, force] = prepareArguments([
      "create",
      "[",
      "nbdkit",
      "--filter=delay",
      "file",
      "a b",
      "--",
      "-x",
      "]",
      "copy.img",
      "--force",
    ]);
    expect([create, destination, force]).toEqual(["create", "copy.img", "--force"]);
    expect(commandWords(source as string)).toEqual(["nbdkit", "--filter=delay", "file", "a b", "--", "-x"]);
  });

  test("does so behind --source and --source= too", () => {
    for (const args of [
      ["--source", "[", "a", "]"],
      ["--source=[", "a", "]"],
    ]) {
      expect(prepareArguments(["hydrate", "x", ...args]).join(" ")).toMatch(/^hydrate x --source[ =]\["a"\]$/);
    }
  });

  test.for([
    [["create", "[", "nbdkit"], "must be followed by a lone ]"],
    [["create", "[", "]"], "nothing between"],
  ] as const)("refuses %j", ([args, why]) => {
    expect(() => prepareArguments([...args])).toThrow(why);
  });

  test("leaves a file called [ that is named as a path", () => {
    expect(prepareArguments(["create", "./[", "x"])).toEqual(["create", "./[", "x"]);
  });
});

test.each([
  ["--_=x", "--_"],
  ["-_", "-_"],
  ["-v_", "-v_"],
  ["--$0=x", "--$0"],
])(
  "%s, which the parser keeps for itself, is no option (fuzz, seed 31, message 172 of command-lines)",
  (argument, shown) => {
    expect(() => prepareArguments(["status", "x", argument])).toThrow(
      `Cannot understand ${shown}: there is no such option`,
    );
    expect(prepareArguments(["status", "--", argument])).toEqual(["status", `./${argument}`]);
  },
);
