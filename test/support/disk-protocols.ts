/** Servers of protocols that only qemu's block drivers speak here: ssh and iSCSI. */
import { createHash } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { join } from "node:path";
import { run } from "./scratch.ts";
import { freePort, listens, type Running, startProgram } from "./source-servers.ts";

/** An ssh server on loopback. */
export interface SshServer extends Running {
  readonly port: number;
  /** SHA-256 of its public key, in hexadecimal, as qemu wants it. */
  readonly fingerprint: string;
}

/** sshd, for whoever has the key that this makes in the directory, `key`. */
export async function startSsh(cwd: string): Promise<SshServer> {
  const port = await freePort();
  for (const name of ["host", "key"]) await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", join(cwd, name));
  const config = join(cwd, "sshd_config");
  const lines = [
    "ListenAddress 127.0.0.1",
    `Port ${port}`,
    `HostKey ${cwd}/host`,
    `AuthorizedKeysFile ${cwd}/key.pub`,
    `AllowUsers ${userInfo().username}`,
    "PermitRootLogin prohibit-password",
    "PasswordAuthentication no",
    "StrictModes no", // of directories for temporary files, which everybody may write to
    "UsePAM no",
    "PidFile none",
    "Subsystem sftp internal-sftp",
  ];
  await writeFile(config, `${lines.join("\n")}\n`);
  // For root's own server this has to be there, wherever its configuration is.
  if (process.getuid?.() === 0) await mkdir("/run/sshd", { recursive: true });
  const running = await startProgram(["/usr/sbin/sshd", "-D", "-e", "-f", config], { cwd, ready: () => listens(port) });
  const [, blob = ""] = (await readFile(join(cwd, "host.pub"), "utf8")).split(" ");
  const fingerprint = createHash("sha256").update(Buffer.from(blob, "base64")).digest("hex");
  return { ...running, port, fingerprint };
}

/** tgtd with a file as LUN 1 of a target, for everybody on loopback; resolves to its port and the server. */
export async function startIscsi(
  cwd: string,
  { target, file }: { target: string; file: string },
): Promise<Running & { port: number }> {
  const port = await freePort();
  const env = { TGT_IPC_SOCKET: join(cwd, "tgt") };
  const words = ["tgtd", "-f", "-C", "0", "--iscsi", `portal=127.0.0.1:${port}`];
  const running = await startProgram(words, { cwd, env, ready: () => listens(port) });
  const tell = (...args: string[]): Promise<string> =>
    run("env", `TGT_IPC_SOCKET=${env.TGT_IPC_SOCKET}`, "tgtadm", "-C", "0", "--lld", "iscsi", ...args, "--tid", "1");
  try {
    await tell("--op", "new", "--mode", "target", "-T", target);
    await tell("--op", "new", "--mode", "logicalunit", "--lun", "1", "-b", file);
    await tell("--op", "bind", "--mode", "target", "-I", "ALL");
  } catch (error) {
    await running.kill();
    throw error;
  }
  return { ...running, port };
}
