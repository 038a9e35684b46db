/** A step of the build: writes the text that `clone --help` prints. */
import { writeFile } from "node:fs/promises";
import { helpText } from "./command-line.ts";
import { HELP_FILE } from "./main.ts";

await writeFile(HELP_FILE, await helpText());
