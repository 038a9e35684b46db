/**
 * What metadata says of where source and destination are. Metadata may come from anybody, so it is believed less than a
 * command line: it runs no command, and chooses no driver, plugin or configuration of somebody else's for qemu.
 */
import { stat } from "node:fs/promises";
import { CloneError, UsageError } from "../base/errors.ts";
import { displayUri, type Location, parseLocation } from "./location.ts";

/** Options of `rbd:POOL/IMAGE:NAME=VALUE…` that name a user and a file, and make librados do nothing. */
const HARMLESS_RBD_OPTIONS = ["id", "conf"];

/**
 * The location that metadata records.
 * @param role as which it is to be opened
 * @throws {UsageError} for what has to be named on the command line each time, and for what no program of ours records
 * @throws {CloneError} where it names a configuration file of somebody else
 */
export async function recordedLocation(uri: string, role: "source" | "destination"): Promise<Location> {
  const hint = `Name it again with --${role}.`;
  // All that is recorded begins with a scheme. A list of words, above all, is a command, and only the user may say those.
  if (!/^[a-z][a-z0-9+.-]*:/i.test(uri)) {
    throw new UsageError(`Cannot open the ${role}: what the metadata says of where it is, is no URI`, { hint });
  }
  const location = parseLocation(uri);
  if (location.kind === "file" && !uri.startsWith("file:")) {
    throw new UsageError(`Cannot open the ${role}: "${uri}", as the metadata has it, is no URI`, { hint });
  }
  if (location.kind === "qemu") await checkQemuName(location.filename, role, hint);
  return location;
}

async function checkQemuName(filename: string, role: string, hint: string): Promise<void> {
  const refuse = (why: string): never => {
    throw new UsageError(`Cannot open the ${role}, "${displayUri(filename)}", as the metadata has it: ${why}`, {
      hint,
    });
  };
  if (/^json:/i.test(filename)) refuse("it could make qemu open anything");
  if (!/^rbd:/i.test(filename)) return;
  for (const option of rbdOptions(filename)) {
    const [, name = "", value = ""] = /^([^=]*)=?(.*)$/s.exec(option) ?? [];
    if (!HARMLESS_RBD_OPTIONS.includes(name)) refuse(`it sets "${name}", which could make librados do anything`);
    if (name === "conf") await refuseForeignFile(value, hint);
  }
}

/** What stands behind the image, where a backslash takes a character as it is. */
function rbdOptions(filename: string): string[] {
  const parts = filename.slice("rbd:".length).match(/(?:\\[\s\S]|[^\\:])+/g) ?? [];
  return parts.slice(1).map((part) => part.replaceAll(/\\([\s\S])/g, "$1"));
}

/** @throws {CloneError} where a file belongs neither to the user nor to root, or others may write to it */
async function refuseForeignFile(path: string, hint: string): Promise<void> {
  const stats = await stat(path).catch(() => undefined); // qemu will say that it is not there
  if (stats === undefined) return;
  const isOwn = stats.uid === 0 || stats.uid === process.geteuid?.();
  const isOpen = Math.floor(stats.mode / 2) % 2 === 1;
  if (isOwn && !isOpen) return;
  throw new CloneError("failed", `Cannot use "${path}", as the metadata has it: somebody else may write to it`, {
    hint,
  });
}
