/** Where the program starts. `clone --help` is answered here, from text made by the build: the parser takes longer to load. */
import { readFile } from "node:fs/promises";
import { ExitCode } from "./exit-codes.ts";

/** The help text, beside this module once it is built. */
export const HELP_FILE = new URL("./help.txt", import.meta.url);

/** Runs the command line and sets the process's exit code. */
export async function run(args: string[]): Promise<void> {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    // A reader that went away (`clone status … | head -1`) is no failure: the work goes on, what it says is dropped.
    if (error.code === "EPIPE") return;
    process.stderr.write(`clone: Cannot write to standard output: ${error.code ?? error.message}\n`);
    process.exit(ExitCode.failed);
  });
  // What goes there is progress, and no work is worth less than that. (An error still has its exit code.)
  process.stderr.on("error", () => {});
  if (args.length === 1 && (args[0] === "--help" || args[0] === "-h")) {
    process.stdout.write(await readFile(HELP_FILE, "utf8"));
    return;
  }
  const { runCommandLine } = await import("./command-line.ts");
  await runCommandLine(args);
}
