// A wrong command line is refused in one line with exit code 2, before anything is opened, with a suggestion where a word
// was mistyped.
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { randomFile, snapshot } from "../support/files.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const BAD: [args: string[], message: RegExp, hint?: RegExp][] = [
  ...["0", "3000", "2K", "2G", "abc", "", "-1", "-4K", "64.5K", "1e5", "64KB", "99999999P"].map(
    (size): [string[], RegExp] => [["create", "disk.img", "new.img", `--region-size=${size}`], /--region-size.*"/],
  ),
  [["create", "disk.img", "new.img", "--region-size", "-1"], /--region-size.*"-1"/],
  [["create", "disk.img", "new.img", "--header-file", "disk.img"], /headers.*--header-file is for web servers/],
  [["create", "rbd:pool/image", "new.img", "--header-file", "disk.img"], /headers.*--header-file is for web servers/],
  [["create", "disk.img", "new.img", "--source-format", "no such"], /--source-format.*no such/],
  ...["-1", "-1M", "abc", "", "1.5M", "10Q", "100M/h"].map((rate): [string[], RegExp] => [
    ["hydrate", "copy.img", `--rate=${rate}`],
    /--rate.*"/,
  ]),
  [["hydrate", "copy.img", "--rate", "-1"], /--rate.*"-1"/],
  [["hydrate", "copy.img", "--threshold", "0"], /--threshold.*"0"/],
  [["hydrate", "copy.img", "--batch-size", "x"], /--batch-size.*"x"/],
  [["hydrate", "copy.img", "--retry", "-1"], /--retry.*"-1"/],
  [["hydrate", "copy.img", "--max-errors", "1.5"], /--max-errors.*"1\.5"/],
  [["hydrate", "copy.img", "--on-error", "panic"], /--on-error.*panic.*stop.*skip/],
  [["hydrate", "copy.img", "--progress", "loud"], /--progress.*loud.*plain/],
  [["hydrate", "copy.img", "--limit", "all"], /--limit.*"all"/],
  [["hydrate", "copy.img", "--limit"], /--limit/],
  [["hydrate", ""], /""/],
  [["create", "", "new.img"], /""/],
  [["create", "disk.img", ""], /""/],
  [["status", "copy.img", "--watch", "0"], /--watch.*"0"/],
  [["status", "copy.img", "--watch=soon"], /--watch.*"soon"/],
  [["status", "copy.img", "--json", "--dm"], /--dm.*--json|--json.*--dm/],
  [["status", "copy.img", "--map", "--dm"], /--dm.*--map|--map.*--dm/],
  [["status", "copy.img", "--json=maybe"], /--json/],
  [[], /command/, /clone --help|^$/],
  [["create"], /argument/],
  [["restore"], /Cannot run restore: --input is missing$/m],
  [["restore", "--input", "dump.json"], /Cannot run restore: --output is missing$/m],
  [["create", "disk.img"], /argument/],
  [["hydrate"], /argument/],
  [["copy", "--keep-metadata", "disk.img", "new.img"], /--keep-metadata: there is no such option/],
  [["create", "disk.img", "new.img", "third.img"], /"third\.img"/],
  [["delete", "copy.img"], /--yes/], // nobody is there to be asked
];

const UNKNOWN_COMMANDS: [string[], RegExp, RegExp][] = [
  [["hydrat", "copy.img"], /"hydrat".*no such command/, /Did you mean hydrate\?/],
  [["statsu", "copy.img"], /"statsu".*no such command/, /Did you mean status\?/],
  [["finalise", "copy.img"], /"finalise".*no such command/, /Did you mean finalize\?/],
  [["xyzzyplugh"], /"xyzzyplugh".*no such command/, /clone --help/],
  [["xyzzyplugh", "a", "b"], /"xyzzyplugh".*no such command/, /clone --help/],
];

const UNKNOWN_OPTIONS: [string[], RegExp, RegExp][] = [
  [["hydrate", "copy.img", "--ratee", "1M"], /--ratee/, /Did you mean --rate\?/],
  [["hydrate", "copy.img", "--treshold=2"], /--treshold/, /Did you mean --threshold\?/],
  [["create", "disk.img", "new.img", "--froce"], /--froce/, /Did you mean --force\?/],
  [["status", "copy.img", "--jsno"], /--jsno/, /Did you mean --json\?/],
  [["hydrate", "copy.img", "--region-size", "64K"], /--region-size/, /clone hydrate --help/],
  [["status", "copy.img", "-x"], /-x/, /clone status --help/],
  [["--verison"], /--verison/, /Did you mean --version\?/],
  [["--xyzzyplugh"], /--xyzzyplugh/, /clone --help/],
];

describe.each([
  ["a wrong argument", BAD],
  ["an unknown command", UNKNOWN_COMMANDS],
  ["an unknown option", UNKNOWN_OPTIONS],
] as const)("%s is refused and changes nothing:", (_, cases) => {
  test.each(cases.map(([args, message, hint]) => ({ line: `clone ${args.join(" ")}`, args, message, hint })))(
    "$line",
    async ({ args, message, hint }) => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(join(cwd, "disk.img"), 65536);
      if (args.includes("copy.img") && ["status", "delete"].includes(args[0] ?? "")) {
        await cloneOk(["create", "disk.img", "copy.img"], { cwd });
      }
      const before = await snapshot(cwd);
      expectFailure(await clone(args, { cwd }), 2, message, hint);
      expect(await snapshot(cwd)).toEqual(before);
    },
  );
});

test("-- ends the options, so that a file may be called like one", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "--force"), 65536);
  await cloneOk(["create", "--", "--force", "-copy.img"], { cwd });
  expect(await cloneOk(["status", "--", "-copy.img"], { cwd })).toContain("-copy.img");
  await cloneOk(["delete", "--yes", "--", "-copy.img"], { cwd });
});

test("of an option given twice the last counts", async () => {
  await using place = await scratchDirectory();
  const cwd = place.path;
  await randomFile(join(cwd, "disk.img"), 65536);
  await cloneOk(["create", "disk.img", "copy.img", "--region-size", "4K", "--region-size", "8K"], { cwd });
  expect(JSON.parse(await cloneOk(["status", "copy.img", "--json"], { cwd })).regionSize).toBe(8192);
});

test.each(["--help", "-h", "help"])("with %s the help is all that is printed, whatever the values", async (asked) => {
  const help = await cloneOk(["create", "--help"]);
  expect(await cloneOk(["create", "a", "b", asked, "--region-size", "2K"])).toBe(help);
});
