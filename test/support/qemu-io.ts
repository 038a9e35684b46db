/** qemu, as somebody else who has an image open. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { hasProgram } from "./scratch.ts";

/** Why qemu-io cannot be used here, or undefined where it can. */
export const noQemu: string | undefined = hasProgram("qemu-io") ? undefined : "needs qemu-io";

/** A qemu-io that has the file open, for writing unless an option says otherwise, until it is disposed of. */
export async function qemuIo(path: string, ...options: string[]) {
  const child = spawn("qemu-io", ["-f", "raw", ...options, path], { stdio: ["pipe", "pipe", "inherit"] });
  await once(child.stdout, "data"); // its prompt, which comes when the file is open
  return {
    pid: child.pid,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  };
}
