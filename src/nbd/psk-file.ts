import { UsageError } from "../base/errors.ts";

/**
 * The keys of a file as `psktool` of GnuTLS writes it: lines of `user:key`, the key in hexadecimal; a user that begins
 * with `#` is in hexadecimal as well.
 *
 * @param name of the file, for messages
 * @throws {UsageError} where a line is none, without showing it
 */
export function parsePskFile(text: string, name: string): Map<string, Uint8Array> {
  const keys = new Map<string, Uint8Array>();
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (line === "") continue;
    const match = /^([^:]+):((?:[0-9a-fA-F]{2})+)$/.exec(line);
    const user = match === null ? undefined : userOf(match[1] as string);
    if (match === null || user === undefined) {
      throw new UsageError(
        `Cannot use the keys in "${name}": line ${index + 1} is not "user:key" with a hexadecimal key`,
      );
    }
    keys.set(user, Buffer.from(match[2] as string, "hex"));
  }
  if (keys.size === 0) throw new UsageError(`Cannot use the keys in "${name}": there are none`);
  return keys;
}

function userOf(text: string): string | undefined {
  if (!text.startsWith("#")) return text;
  return /^#(?:[0-9a-fA-F]{2})+$/.test(text) ? Buffer.from(text.slice(1), "hex").toString("utf8") : undefined;
}
