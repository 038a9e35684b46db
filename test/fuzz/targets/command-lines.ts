/**
 * Command lines, parsed in this process: they end in a command's options, in help, or in an error of usage, each time the same, and
 * never in a fault of the program. Commands themselves do not run. A message is the arguments, parted by NULs.
 */
import assert from "node:assert/strict";
import type { Command } from "../../../src/cli/command.ts";
import { runCommandLine } from "../../../src/cli/command-line.ts";
import { mutate } from "../mutate.ts";
import { type FuzzTarget, mustHold, type Outcome } from "../target.ts";

const COMMANDS = [
  ...[
    "create",
    "hydrate",
    "serve",
    "status",
    "tune",
    "check",
    "dump",
    "restore",
    "repair",
    "verify",
    "finalize",
    "copy",
    "delete",
    "completion",
  ],
] as const;

/** Good ones. */
const GOOD = [
  ["create", "disk.img", "copy.img", "--region-size", "64K", "--metadata", "copy.clone"],
  ["create", "[", "nbdkit", "memory", "1G", "]", "copy.img"],
  ["copy", "https://example.com/x.img", "copy.img", "--rate=10M/s", "--header-file", "headers", "--no-extents"],
  [
    "hydrate",
    "copy.img",
    "--threshold",
    "auto",
    "--batch-size=8",
    "--retry",
    "0",
    "--on-error",
    "stop",
    "--order",
    "t",
  ],
  ["hydrate", "copy.img", "--source=[", "nbdkit", "memory", "1G", "]", "--progress", "json", "--max-errors=5"],
  ["serve", "copy.img", "--listen", "localhost:10809", "--hydrate-on-read", "auto"],
  ["serve", "copy.img", "--socket", "/run/x.sock", "--record-trace=t"],
  ["serve", "copy.img", "--read-only", "--min-rate", "0", "-v"],
  ["status", "copy.img", "--json"],
  ["status", "copy.img", "--watch", "--dm"],
  ["status", "copy.img", "--watch", "5"],
  ["tune", "copy.img", "hydration_threshold", "8"],
  ["tune", "copy.img", "--rate", "max", "--pause"],
  ["check", "copy.clone", "--json"],
  ["dump", "copy.clone"],
  ["restore", "--input", "-", "--output", "new.clone", "--force"],
  ["restore", "--input=dump.json", "--output=new.clone", "-q"],
  ["repair", "copy.clone", "--output", "new.clone", "--assume", "unhydrated"],
  ["repair", "copy.img", "--in-place", "--backup", "b", "--compare", "--source", "disk.img"],
  ["repair", "copy.clone", "--size=1G", "--region-size", "4K", "--dry-run", "--json"],
  ["verify", "copy.img", "-q"],
  ["finalize", "copy.img", "--accept-unreadable", "--keep-metadata", "--verify"],
  ["finalize", "copy.img", "--accept-unreadable", "--without-source"],
  ["delete", "--", "-x.img"],
  ["completion"],
  ["--help"],
  ["hydrate", "--help"],
  ["--version"],
];

const DICTIONARY = [
  ...[
    "--rate",
    "--rate.x=1",
    "--rate=",
    "--no-verify",
    "--json=false",
    "-vq",
    "-vvv",
    "--verbose=maybe",
    "--",
    "[",
    "]",
    "-",
  ],
  ...[
    "--get-yargs-completions",
    "--__proto__=1",
    "--constructor",
    "--$0=x",
    "--_=x",
    "--threshold=-1",
    "--help=false",
    "-h1",
  ],
  ...[
    "--watch=0",
    "--no-no-extents",
    "--rate[]=1",
    "--config",
    "x.y.z",
    "--source",
    "--region-size=3",
    "--assume=x",
    "--in-place=false",
  ],
  ...COMMANDS,
];

/** What a command line comes to. */
interface Result {
  exitCode: number | string | undefined;
  said: string;
  options: string;
}

/** The parser, whose commands only note what they are told. */
export const commandLines: FuzzTarget = {
  name: "command-lines",
  weight: 6,
  mostBytes: 4 * 1024 * 1024,
  async open() {
    const restore: (() => void)[] = [];
    let options = "";
    for (const name of COMMANDS) {
      const module = (await import(`../../../src/cli/commands/${name}.ts`)) as Record<string, Command>;
      const command = module[`${name}Command`] as Command;
      const { run } = command;
      command.run = async (given: object) => {
        options = `${name} ${JSON.stringify(given)}`;
        return 0;
      };
      restore.push(() => {
        command.run = run;
      });
    }
    const parts = GOOD.map((args) => Buffer.from(args.join("\0")));
    const { title } = process;
    return {
      generate(random) {
        const good = random.pick(parts);
        if (random.oneIn(10)) return { bytes: good, isGood: true };
        const dictionary = DICTIONARY.flatMap((word) => [`\0${word}`, `\0${word}\0`, word]);
        const bytes = mutate(good, random, { others: parts, dictionary, isText: true });
        return { bytes: bytes.subarray(0, 8192), isGood: false };
      },
      async run(message): Promise<Outcome> {
        const args = message.toString("utf8").split("\0");
        const parse = async (): Promise<Result> => {
          options = "";
          const said = await heard(() => runCommandLine([...args]));
          const { exitCode } = process;
          process.exitCode = undefined;
          return { exitCode, said, options };
        };
        const result = await parse();
        mustHold(!result.said.includes("fault of the program"), `${JSON.stringify(args)}: ${result.said}`);
        mustHold(result.exitCode === 0 || result.exitCode === 2, `it exits with ${result.exitCode}: ${result.said}`);
        if (result.exitCode === 2) mustHold(/^clone: ./.test(result.said), `it says: ${result.said}`);
        if (message.length % 4 === 0) assert.deepEqual(await parse(), result, "the same line comes to something else");
        return result.exitCode === 0 ? "accepted" : "refused";
      },
      async [Symbol.asyncDispose]() {
        for (const each of restore) each();
        process.title = title;
      },
    };
  },
};

/** What is written to standard output and error meanwhile. */
async function heard(work: () => Promise<void>): Promise<string> {
  let said = "";
  const write = (text: unknown): boolean => {
    said += String(text);
    return true;
  };
  const own = [process.stdout.write, process.stderr.write, console.log, console.error] as const;
  process.stdout.write = write as typeof process.stdout.write;
  process.stderr.write = write as typeof process.stderr.write;
  console.log = console.error = (...words: unknown[]) => void write(`${words.join(" ")}\n`);
  try {
    await work();
  } finally {
    [process.stdout.write, process.stderr.write, console.log, console.error] = own;
  }
  return said;
}
