/**
 * Sources that qemu opens by a text of its own (`rbd:…`, `ssh://…`, `json:{…}`), and what such a text must not hold: it is
 * kept in metadata, shown in status and given to a program as an argument, where everybody on the machine reads it.
 * No I/O here.
 */
import { UsageError } from "../base/errors.ts";

/** Names of fields, options and query parameters whose values are secrets. */
const SECRET = /^(key|secret|token|cookie|pass|passwd|password|passphrase|proxy-password|sig|signature)$/i;
/** Secrets of signed URLs, as `X-Amz-Signature`. */
const SIGNED = /(signature|security-token|credential|accesskeyid)$/i;

/** How deep an object after `json:` may be, and how long its text. */
const DEEPEST = 32;
const LONGEST_TEXT = 64 * 1024;

/**
 * The object that stands after `json:`. Strictly JSON, and it has to name its driver: without one qemu would guess the
 * format from bytes that whoever wrote to the image has chosen.
 * @throws {UsageError}
 */
export function parseJsonImage(text: string): Record<string, unknown> {
  const refuse = (why: string): never => {
    throw new UsageError(`Cannot open "json:{…}": ${why}`);
  };
  if (text.length > LONGEST_TEXT) refuse(`it is longer than ${LONGEST_TEXT} characters`);
  let parsed: unknown;
  try {
    parsed = JSON.parse(text.slice(text.indexOf(":") + 1));
  } catch {
    return refuse("what stands after the colon is not JSON"); // the parser's own message would quote it
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) return refuse("it is no object");
  if (typeof (parsed as { driver?: unknown }).driver !== "string") {
    return refuse('it names no "driver", and none is guessed');
  }
  return parsed as Record<string, unknown>;
}

/**
 * Refuses a text that holds a password, key or token. Nothing of it is repeated in the message.
 * @throws {UsageError} that names the way by a file, an agent or the environment
 */
export function refuseCredentials(text: string): void {
  const found = /^json:/i.test(text) ? jsonCredential(parseJsonImage(text), "", 0) : textCredential(text);
  if (found === undefined) return;
  const scheme = /^[a-z][a-z0-9+.-]*(?=:)/i.exec(text)?.[0].toLowerCase() ?? "";
  throw new UsageError(
    `Cannot open "${shown(scheme)}": it holds a credential (${found}), and would be kept and shown`,
    {
      hint: HINTS[scheme] ?? "Give it by a file that the driver reads, or as the user's own configuration.",
    },
  );
}

/** Where credentials belong instead. */
const HINTS: Readonly<Record<string, string>> = {
  rbd: "Name the user and a configuration file with its keyring instead: rbd:POOL/IMAGE:id=NAME:conf=FILE.",
  ssh: "Log in with a key that ssh-agent holds.",
  iscsi: "Set LIBISCSI_CHAP_USERNAME and LIBISCSI_CHAP_PASSWORD in the environment instead.",
  iser: "Set LIBISCSI_CHAP_USERNAME and LIBISCSI_CHAP_PASSWORD in the environment instead.",
  json: "Use a file, an agent or the environment, as the driver offers it.",
};

/** What of a text may be shown where the rest may be secret. */
function shown(scheme: string): string {
  if (scheme === "json") return "json:{…}";
  return scheme === "rbd" ? "rbd:…" : `${scheme}://…`;
}

/** What in a text is a credential, in words, or undefined. */
function textCredential(text: string): string | undefined {
  const rbd = /^rbd:/i.exec(text);
  if (rbd !== null) return rbdCredential(text.slice(rbd[0].length));
  const uri = /^[a-z][a-z0-9+.-]*:\/\/([^/?#]*)[^?#]*(?:\?([^#]*))?/i.exec(text);
  if (uri === null) return undefined;
  const [, authority = "", query = ""] = uri;
  const user = authority.includes("@") ? authority.slice(0, authority.lastIndexOf("@")) : "";
  // libiscsi takes `user%password@`; a percent sign that escapes a character is none.
  if (user.includes(":") || /%3a/i.test(user)) return "a password";
  if (/^is(csi|er):/i.test(text) && user.includes("%")) return "a password";
  return query
    .split(/[&;]/)
    .map((parameter) => decoded(parameter.split("=", 1)[0] as string))
    .filter(isSecret)
    .map((name) => `"${name}"`)[0];
}

/** `POOL/IMAGE@SNAPSHOT:NAME=VALUE:…`, where a backslash takes a character as it is. */
function rbdCredential(rest: string): string | undefined {
  const options = rest.match(/(?:\\[\s\S]|[^\\:])+/g)?.slice(1) ?? [];
  const names = options.map((option) => option.split("=", 1)[0]?.replaceAll("\\", "").trim().replaceAll(/[ _]/g, "-"));
  const name = names.find((name) => name !== undefined && isSecret(name));
  return name === undefined ? undefined : `"${name}"`;
}

/** A secret in an object of qemu's, by the path of its field; `password-secret` and the like only name one. */
function jsonCredential(value: unknown, path: string, depth: number): string | undefined {
  if (depth > DEEPEST) throw new UsageError('Cannot open "json:{…}": it is nested too deeply');
  if (typeof value === "string") return stringCredential(value, path, depth);
  if (typeof value !== "object" || value === null) return undefined;
  for (const [name, inner] of Object.entries(value)) {
    const inside = path === "" ? name : `${path}.${name}`;
    // "file.password" is qemu's other way to write a field within a field.
    if (isSecret(name.slice(name.lastIndexOf(".") + 1)) && typeof inner !== "object") return `"${inside}"`;
    const found = jsonCredential(inner, inside, depth + 1);
    if (found !== undefined) return found;
  }
  return undefined;
}

function stringCredential(value: string, path: string, depth: number): string | undefined {
  const nested = value.startsWith("json:")
    ? jsonCredential(parseJsonImage(value), path, depth + 1)
    : textCredential(value);
  return nested === undefined ? undefined : `${nested} in "${path}"`;
}

function isSecret(name: string): boolean {
  return SECRET.test(name) || SIGNED.test(name);
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
