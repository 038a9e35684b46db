/** A shell for examples: runs them as they are printed, and ends what they have left behind, servers above all. */
import { randomUUID } from "node:crypto";
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CLONE, eventually } from "./run-clone.ts";
import { hasProgram, run } from "./scratch.ts";

/** Variable of the environment by which the processes of one shell are known; daemons keep their environment. */
const MARK = "CLONE_TEST_SHELL";

/** Ends a script that hangs, s. */
const LONGEST_SECONDS = 50;

/** A server that an example runs as the last command of a block: it goes on in the background, and is ready with its socket. */
const SERVING = /^(clone serve .*--socket (\S+).*)$/gm;

/** Where to run, and what is elsewhere than where the text has it. */
export interface RecipeShellOptions {
  cwd: string;
  /** Ports and paths of the text, and those of this run; each is put in everywhere. */
  replace?: readonly (readonly [printed: string | RegExp, here: string])[];
  /** Lines that come before every script. */
  before?: readonly string[];
}

/** Runs scripts, `clone` among their commands, with mounts that nobody else sees. Disposed of, it ends what they started. */
export class RecipeShell implements AsyncDisposable {
  readonly #options: RecipeShellOptions;
  readonly #mark = randomUUID();

  constructor(options: RecipeShellOptions) {
    this.#options = options;
  }

  /** Runs texts one after the other as one script, which ends with the first command that fails; resolves to what it printed. */
  async run(...texts: readonly string[]): Promise<string> {
    const { cwd, before = [] } = this.#options;
    const bin = join(cwd, "bin");
    await mkdir(bin, { recursive: true });
    await writeFile(join(bin, "clone"), `#!/bin/sh\nexec '${process.execPath}' '${CLONE}' "$@"\n`, { mode: 0o755 });
    const start = [`PATH='${bin}':$PATH:/usr/sbin:/sbin`, `export ${MARK}=${this.#mark}`, `cd '${cwd}'`];
    const script = ["set -e", ...start, ...before, ...texts.map((text) => this.here(text))].join("\n");
    const alone = process.getuid?.() === 0 && hasProgram("unshare") ? ["unshare", "--mount"] : [];
    const [command = "", ...args] = ["timeout", "-s", "KILL", `${LONGEST_SECONDS}`, ...alone, "sh", "-c", script];
    return await run(command, ...args);
  }

  /** A text with the ports and paths of this run, which does not wait for the end of a server. */
  here(text: string): string {
    const { replace = [] } = this.#options;
    const here = replace.reduce((result, [printed, real]) => result.replaceAll(printed, real), text);
    return here.replaceAll(SERVING, (_, command: string, socket: string) => {
      const wait = `i=0; until [ -e ${socket} ]; do i=$((i + 1)); [ $i -lt 400 ]; sleep 0.05; done`;
      return `${command} > ${socket}.log 2>&1 &\n${wait}`;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await eventually("all processes of the example have ended", async () => {
      const left = await this.#processes();
      for (const pid of left) kill(pid);
      return left.length === 0;
    });
  }

  async #processes(): Promise<number[]> {
    const marked: number[] = [];
    for (const name of await readdir("/proc")) {
      if (!/^\d+$/.test(name)) continue;
      const environment = await readFile(`/proc/${name}/environ`, "latin1").catch(() => ""); // gone, or somebody else's
      if (environment.split("\0").includes(`${MARK}=${this.#mark}`)) marked.push(Number(name));
    }
    return marked;
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // it has ended by itself
  }
}
