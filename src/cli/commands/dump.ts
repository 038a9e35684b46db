import { once } from "node:events";
import { defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { isOutputRead } from "../standard-output.ts";

/** Waiting ends with the error of the stream, which `main` has dealt with. */
function readerLeft(error: NodeJS.ErrnoException): void {
  if (error.code !== "EPIPE") throw error;
}

/** `clone dump METADATA` */
export const dumpCommand = defineCommand({
  options: (yargs) =>
    yargs
      .positional("metadata", {
        type: "string",
        demandOption: true,
        describe: "The metadata, or the destination it stands beside",
      })
      .option("json", { type: "boolean", describe: "Print it on one line" }),
  async run(options, { terminal, signal, onWarning }) {
    const { Clone } = await import("../../clone/clone.ts");
    const { dumpMetadata } = await import("../../metadata/dump.ts");
    await using clone = await Clone.open({ name: options.metadata, access: "quiescent", signal, onWarning });
    const { geometry, metadata, descriptor } = clone;
    const content = { geometry, hydratedRanges: metadata.hydratedRanges(), descriptor };
    for (const piece of dumpMetadata(content, options.json ? "line" : "pretty")) {
      signal.throwIfAborted();
      if (!process.stdout.write(terminal.shown(piece))) await once(process.stdout, "drain").catch(readerLeft);
      if (!isOutputRead()) break;
    }
    return ExitCode.done;
  },
});
