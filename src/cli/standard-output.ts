/** Standard output, and whether anybody still reads it. */
import { ExitCode } from "./exit-codes.ts";

let isRead = true;

/** False from the moment a write found that the reader has gone away (`clone status … | head -1`). */
export function isOutputRead(): boolean {
  return isRead;
}

/**
 * Makes a reader that goes away no failure: the work goes on, and what it says is dropped. Any other error of standard
 * output, as a full disk, ends the program. Errors of standard error are dropped: progress is worth less than the work.
 */
export function tolerateLostReaders(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    isRead = false;
    if (error.code === "EPIPE") return;
    process.stderr.write(`clone: Cannot write to standard output: ${error.code ?? error.message}\n`);
    process.exit(ExitCode.failed);
  });
  process.stderr.on("error", () => {});
}
