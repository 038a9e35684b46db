import { formatExactSize, formatSize } from "../../base/units.ts";
import { defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";

/** `clone restore --input FILE --output METADATA` */
export const restoreCommand = defineCommand({
  options: (yargs) =>
    yargs
      .option("input", {
        type: "string",
        demandOption: true,
        requiresArg: true,
        describe: "File with what `clone dump` has printed; - is standard input",
      })
      .option("output", {
        type: "string",
        demandOption: true,
        requiresArg: true,
        describe: "The metadata to make: a new file, or a block device",
      })
      .option("force", { type: "boolean", describe: "Replace metadata that stands there" }),
  async run(options, { terminal, signal }) {
    const { restoreMetadata } = await import("../../clone/restore-metadata.ts");
    const { input, output, force = false } = options;
    const { path, geometry, hydratedRegions, hasDescriptor } = await restoreMetadata({ input, output, force, signal });
    const { size, regionSize, regionCount } = geometry;
    terminal.print(
      `Restored ${path}: ${formatSize(size)} in ${regionCount} regions of ${formatExactSize(regionSize)}, ${hydratedRegions} hydrated`,
    );
    if (!hasDescriptor)
      terminal.note("The dump names no devices: --source and --destination do, where they are needed.");
    return ExitCode.done;
  },
});
