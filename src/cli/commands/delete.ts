import { once } from "node:events";
import { createInterface } from "node:readline/promises";
import { UsageError } from "../../base/errors.ts";
import { type CliContext, defineCommand } from "../command.ts";
import { ExitCode } from "../exit-codes.ts";
import { cloneArgument } from "../options.ts";

/** `clone delete CLONE` */
export const deleteCommand = defineCommand({
  options: (yargs) => cloneArgument(yargs).option("yes", { alias: "y", type: "boolean", describe: "Do not ask" }),
  async run(options, context) {
    const { deleteClone } = await import("../../clone/delete-clone.ts");
    const deleted = await deleteClone(
      options.clone,
      async ({ metadata }) => options.yes || (await ask(metadata, context)),
    );
    if (deleted === undefined) {
      context.terminal.note("Nothing was deleted.");
      return ExitCode.failed;
    }
    const { metadata, destination } = deleted;
    context.terminal.print(`Deleted ${metadata}; ${destination ?? "the destination"} stays as it is`);
    return ExitCode.done;
  },
});

async function ask(metadata: string, { signal }: CliContext): Promise<boolean> {
  if (!process.stdin.isTTY) throw new UsageError(`Cannot ask whether to delete "${metadata}": use --yes`);
  const terminal = createInterface({
    input: process.stdin,
    output: process.stderr,
    terminal: false, // so that Ctrl-C stays a signal
  });
  const question = `Delete ${metadata}? What is not hydrated yet is then only in the source. [y/N] `;
  try {
    const answer = await Promise.race([
      terminal.question(question, { signal }),
      once(terminal, "close").then(() => ""),
    ]);
    return /^y(es)?$/i.test(answer.trim());
  } catch (error) {
    signal.throwIfAborted(); // Ctrl-C: `main` knows that reason
    throw error;
  } finally {
    terminal.close();
  }
}
