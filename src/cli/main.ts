/** Where the program starts. `clone --help` is answered here, from text made by the build: the parser takes longer to load. */
import { readFile } from "node:fs/promises";
import { tolerateLostReaders } from "./standard-output.ts";

/** The help text, beside this module once it is built. */
export const HELP_FILE = new URL("./help.txt", import.meta.url);

/** Runs the command line and sets the process's exit code. */
export async function run(args: string[]): Promise<void> {
  process.on("SIGUSR1", () => {}); // asks for progress where there is any; without a listener Node opens its debugger
  tolerateLostReaders();
  if (args.length === 1 && (args[0] === "--help" || args[0] === "-h")) {
    process.stdout.write(await readFile(HELP_FILE, "utf8"));
    return;
  }
  const { runCommandLine } = await import("./command-line.ts");
  await runCommandLine(args);
}
