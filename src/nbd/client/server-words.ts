/** What a server says of itself, made fit to be shown: it may say anything. */

/** Most of a text that is shown, characters. */
const LONGEST = 200;

/** A server's text without what a terminal would obey, and not longer than a line or two. */
export function serverWords(text: string): string {
  const plain = text.replace(/[\p{Cc}\p{Cf}\p{Z}]+/gu, " ").trim();
  return plain.length <= LONGEST ? plain : `${plain.slice(0, LONGEST - 1)}…`;
}
