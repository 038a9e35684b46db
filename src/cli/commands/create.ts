import { formatExactSize, formatSize } from "../../base/units.ts";
import { defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { createOptions, jsonOption } from "../options.ts";

/** `clone create SOURCE DEST` */
export const createCommand = defineCommand({
  options: (yargs) => jsonOption(createOptions(yargs)),
  async run(options, { terminal, signal, onWarning, onDetail }) {
    const { createClone, DEFAULT_REGION_SIZE } = await import("../../clone/create-clone.ts");
    const request = copyRequest(options);
    const created = await createClone({
      ...request,
      regionSize: request.regionSize ?? DEFAULT_REGION_SIZE,
      signal,
      onNote: onWarning,
      onDetail,
    });
    const { metadata, geometry, exactSize, warnings, reminders } = created;
    for (const warning of [...warnings, ...reminders]) terminal.warn(warning);
    if (options.json) {
      const { size, regionSize, regionCount: regions } = geometry;
      terminal.print(
        JSON.stringify({
          metadata,
          source: created.source,
          destination: created.destination,
          format: created.format,
          size,
          exactSize,
          regionSize,
          regions,
        }),
      );
    } else {
      terminal.print(
        `Created ${metadata}: ${formatSize(exactSize)}${created.format === "raw" ? "" : ` of a ${created.format} image`} in ${geometry.regionCount} regions of ${formatExactSize(geometry.regionSize)}`,
      );
      terminal.note(`\`clone hydrate ${options.metadata ?? options.destination}\` copies the data.`);
    }
    return ExitCode.done;
  },
});

/** The request that the options of `create` and `copy` make. */
export function copyRequest(options: {
  source: string;
  destination: string;
  metadata: string | undefined;
  "region-size": number | undefined;
  force: boolean | undefined;
  "source-format": string | undefined;
  "header-file": string | undefined;
}) {
  const { source, destination, metadata, force = false } = options;
  const [regionSize, sourceFormat] = [options["region-size"], options["source-format"]];
  return { source, destination, metadata, force, regionSize, sourceFormat, headerFile: options["header-file"] };
}
