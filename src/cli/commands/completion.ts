import type { Argv } from "yargs";
import { defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";

let parser: Argv;

/** `clone completion`: the parser knows all commands and options, so the script only asks it (`--get-yargs-completions`). */
export const completionCommand = defineCommand({
  options: (yargs) => {
    parser = yargs;
    return yargs;
  },
  async run() {
    parser.showCompletionScript();
    return ExitCode.done;
  },
});
