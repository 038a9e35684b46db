// `clone completion` in a real bash: its script is sourced, its function is called as readline does it on TAB, and what it
// leaves in COMPREPLY is what the user would be offered.
import { execFile } from "node:child_process";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { CLONE, cloneOk } from "../support/run-clone.ts";
import { hasProgram, scratchDirectory, withReason } from "../support/scratch.ts";

const execute = promisify(execFile);

/** bash finds the function that is bound to the command, and hands it the words and the place of the cursor. */
const PRESS_TAB = `
set -eu
source <(clone completion)
declare -a COMPREPLY=()
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=\${#COMP_LINE}
specification=$(complete -p "$1")
[[ $specification =~ \\ -F\\ ([^ ]+) ]]
"\${BASH_REMATCH[1]}" "$1" "\${!#}" "\${@: -2:1}"
if ((\${#COMPREPLY[@]} > 0)); then printf '%s\\n' "\${COMPREPLY[@]}"; fi
`;

/** What bash offers when TAB is pressed at the end of the last word. */
async function complete(...words: string[]): Promise<string[]> {
  await using directory = await scratchDirectory();
  const bin = join(directory.path, "bin");
  await mkdir(bin);
  await writeFile(join(bin, "clone"), `#!/bin/sh\nexec '${process.execPath}' '${CLONE}' "$@"\n`);
  await chmod(join(bin, "clone"), 0o755);
  const env = {
    ...process.env,
    PATH: `${bin}${delimiter}${process.env.PATH}`,
    SHELL: "/bin/bash",
    ZSH_NAME: undefined,
  };
  const { stdout, stderr } = await execute("bash", ["--norc", "-c", PRESS_TAB, "bash", ...words], {
    cwd: directory.path,
    env,
  });
  expect(stderr).toBe("");
  return stdout.split("\n").filter((line) => line !== "");
}

const noBash = hasProgram("bash") ? undefined : "needs bash";
describe.skipIf(noBash !== undefined)(withReason("the completion script in bash", noBash), () => {
  test("completes the name of a command", async () => {
    expect(await complete("clone", "hyd")).toEqual(["hydrate"]);
  });

  test("offers every command that the help lists where nothing is typed yet", async () => {
    const help = await cloneOk(["--help"]);
    const commands = [...help.matchAll(/^ {2}clone ([a-z]+)/gm)].map((match) => match[1]);
    expect(commands).toContain("hydrate");
    const offered = await complete("clone", "");
    expect(offered).toEqual(expect.arrayContaining(commands));
    expect(offered.filter((word) => !word.startsWith("-") && !commands.includes(word))).toEqual([]);
  });

  test("completes an option of the command, and none of another", async () => {
    expect(await complete("clone", "hydrate", "--ra")).toEqual(["--rate"]);
    expect(await complete("clone", "delete", "--ra")).toEqual([]);
  });

  test("completes the value of an option that has a few", async () => {
    expect(await complete("clone", "hydrate", "--on-error", "s")).toEqual(["stop", "skip"]);
    expect(await complete("clone", "hydrate", "--progress", "js")).toEqual(["json"]);
  });

  test("offers nothing of its own where a file is being typed, so that bash offers files", async () => {
    expect(await complete("clone", "hydrate", "disk")).toEqual([]);
  });
});

test("clone completion writes for bash or for zsh, as SHELL says", async () => {
  const script = await cloneOk(["completion"], { env: { SHELL: "/bin/bash", ZSH_NAME: undefined } });
  expect(script).toContain("complete -o bashdefault -o default -F _clone_yargs_completions clone");
  const zsh = await cloneOk(["completion"], { env: { SHELL: "/bin/zsh" } });
  expect(zsh).toMatch(/^#compdef clone$/m);
});
