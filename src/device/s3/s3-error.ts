/** The body of an S3 error: `<Error><Code>NoSuchKey</Code><Message>…</Message><Region>…</Region></Error>`. */

/** What of it is used. The rest repeats the request, with its signature. */
export interface S3Error {
  /** `NoSuchKey`; empty where the body is no S3 error. */
  code: string;
  /** For people. One line, printable, at most 200 characters, without anything that may be a key or a signature. */
  message: string;
  /** Where the bucket is, where that is what was wrong. */
  region: string | undefined;
}

const MAX_MESSAGE = 200;

/** Reads the beginning of an error's body. */
export function parseS3Error(text: string): S3Error {
  const code = element(text, "Code") ?? "";
  return {
    code: /^[A-Za-z0-9._-]{1,64}$/.test(code) ? code : "",
    message: shown(element(text, "Message") ?? ""),
    region: element(text, "Region"),
  };
}

function element(text: string, name: string): string | undefined {
  return new RegExp(`<${name}>([^<]{1,4096})</${name}>`).exec(text)?.[1];
}

function shown(message: string): string {
  const plain = message
    .replaceAll(/&(amp|lt|gt|quot|apos);/g, (_, name: string) => ENTITIES[name] as string)
    .replaceAll(/[^\x20-\x7e]+/g, " ")
    .replaceAll(/[A-Za-z0-9+/=_-]{16,}/g, (word) => (/\d/.test(word) ? "…" : word)) // no word of a language
    .trim();
  return plain.length > MAX_MESSAGE ? `${plain.slice(0, MAX_MESSAGE)}…` : plain;
}

const ENTITIES: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };
