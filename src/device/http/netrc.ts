/**
 * The netrc file, in which users keep passwords by host: ftp(1), as curl reads it. Words are parted by white space; a word
 * in double quotes may hold some.
 *
 *     machine images.example login me password "a b"
 *     default login anonymous password x
 *     macdef init ⏎ … ⏎ an empty line ends it
 */

/** What a machine is told. */
export interface NetrcEntry {
  login: string;
  password: string;
}

/** What a netrc file says. */
export interface Netrc {
  /** By host name in lower case; the first entry of a name counts. */
  readonly machines: ReadonlyMap<string, NetrcEntry>;
  /** For every other host. */
  readonly fallback: NetrcEntry | undefined;
}

/** Reads the text of a netrc file. Words that are not known are passed over, as everybody does. */
export function parseNetrc(text: string): Netrc {
  const machines = new Map<string, NetrcEntry>();
  let fallback: NetrcEntry | undefined;
  let entry: NetrcEntry | undefined;
  const words = wordsOf(text);
  for (let word = words.next(); !word.done; word = words.next()) {
    const next = (): string => (words.next().value as string | undefined) ?? "";
    if (word.value === "machine") {
      const name = next().toLowerCase();
      entry = { login: "", password: "" };
      if (!machines.has(name)) machines.set(name, entry);
    } else if (word.value === "default") {
      entry = { login: "", password: "" };
      fallback ??= entry;
    } else if (word.value === "login") {
      const login = next();
      if (entry !== undefined) entry.login = login;
    } else if (word.value === "password") {
      const password = next();
      if (entry !== undefined) entry.password = password;
    } else if (word.value === "account") next();
  }
  return { machines, fallback };
}

function* wordsOf(text: string): Generator<string, undefined> {
  // A macro ends at an empty line; its text may look like anything.
  const withoutMacros = text.replaceAll(/^[ \t]*macdef\b[^\n]*\n(?:[^\n]*\S[^\n]*(?:\n|$))*/gm, "");
  const withoutComments = withoutMacros.replaceAll(/^[ \t]*#[^\n]*$/gm, "");
  for (const [word] of withoutComments.matchAll(/"(?:[^"\\]|\\.)*"|\S+/gs)) {
    const quoted = word.length >= 2 && word.startsWith('"') && word.endsWith('"');
    yield quoted ? word.slice(1, -1).replaceAll(/\\(.)/gs, (_, char: string) => ESCAPES[char] ?? char) : word;
  }
  return undefined;
}

const ESCAPES: Record<string, string> = { n: "\n", r: "\r", t: "\t" };
