/**
 * Takes away what a killed test would leave on the machine: mounts and loop devices outlive their maker. A shell in a session of
 * its own, which no Ctrl-C reaches, waits for the end of a pipe from us, however that comes, and then cleans up.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";

/** Disposed of, it does nothing any more: to be disposed of when all is cleaned up. */
export type Guardian = AsyncDisposable;

// Neither waits for those who still use it, who are about to end, too: a mount goes with the last of them, and so does a loop device.
const COMMANDS = {
  mount: ["umount", "--lazy"],
  "loop device": ["losetup", "--detach"],
} as const;

/** Watches from its making, which is right after that of a mount or a loop device at `path`. */
export function guard(what: keyof typeof COMMANDS, path: string): Guardian {
  const shell = spawn("/bin/sh", ["-c", 'read -r end; exec "$@"', "guardian", ...COMMANDS[what], path], {
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
  });
  const ended = once(shell, "exit");
  return {
    async [Symbol.asyncDispose]() {
      shell.kill("SIGKILL");
      await ended;
    },
  };
}
