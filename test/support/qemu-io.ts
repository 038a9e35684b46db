/** qemu, as somebody else who has an image open. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { hasProgram } from "./scratch.ts";

/** Why qemu-io cannot be used here, or undefined where it can. */
export const noQemu: string | undefined = hasProgram("qemu-io") ? undefined : "needs qemu-io";

/**
 * A qemu-io that has the file, or what a URI names, open, for writing unless an option says otherwise, until it is disposed of. It
 * does what it is told, and ends with status 1 where some of that failed.
 */
export async function qemuIo(path: string, ...options: string[]) {
  const child = spawn("qemu-io", ["-f", "raw", ...options, path], { stdio: ["pipe", "pipe", "inherit"] });
  child.stdin.on("error", () => {}); // it has ended, which its status tells
  const status = new Promise<number | null>((resolve) => child.once("close", resolve));
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  await once(child.stdout, "data"); // its prompt, which comes when the file is open
  return {
    pid: child.pid,
    status,
    said: () => said,
    tell: (command: string) => child.stdin.write(`${command}\n`),
    /** The end of what it is told; a `quit` in the same breath as another command it would not see. */
    leave: () => child.stdin.end(),
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await status;
    },
  };
}
