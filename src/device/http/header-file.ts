/** Header fields from a file, for servers that want more than a name and a password: `Authorization: Bearer …`. */
import { UsageError } from "../../base/errors.ts";

/** Fields that decide what a request means: with another value, what comes back might not be what was asked for. */
const OWN_FIELDS =
  /^(range|if-.*|accept-encoding|connection|content-.*|expect|host|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade)$/;

/** Most that a file of header fields may hold, bytes; servers refuse far less. */
export const MAX_HEADER_FILE = 65536;

/**
 * Reads lines `Name: value`, as `curl -H @FILE` does; empty lines and those that begin with `#` are passed over. Names come
 * back in lower case.
 * @throws {UsageError} naming the line, never what it says
 */
export function parseHeaderFile(text: string, path: string): Record<string, string> {
  const fields = new Map<string, string>(); // a name may be `__proto__`
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    if (/^\s*(#.*)?$/.test(line)) continue;
    const match = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*(.*?)[ \t]*$/.exec(line);
    const problem = match === null ? "it is not `Name: value`" : problemWith(match[1] as string, match[2] as string);
    if (problem !== undefined) throw new UsageError(`Cannot use "${path}": line ${index + 1}: ${problem}`);
    const [, name, value] = match as unknown as [string, string, string];
    const key = name.toLowerCase();
    if (fields.has(key)) throw new UsageError(`Cannot use "${path}": line ${index + 1}: ${name} is there twice`);
    fields.set(key, value);
  }
  return Object.fromEntries(fields);
}

function problemWith(name: string, value: string): string | undefined {
  if (OWN_FIELDS.test(name.toLowerCase())) return `${name} is for this program to set`;
  if (value === "") return `${name} has no value`;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return /[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]/.test(value)
    ? `${name} has characters that no header may hold`
    : undefined;
}
