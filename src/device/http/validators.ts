/**
 * What tells one state of an object from another: its size, and an entity tag or a time of change, RFC 9110, 8.8. They are
 * pinned when the object is opened; every later request asks for that state alone, and every reply is compared with it,
 * since there are servers that ignore such conditions.
 */
import { headerOf, type ReplyHead } from "./reply-head.ts";

/** A state of an object. Each is there only where the server tells it. */
export interface Validators {
  /** Bytes. */
  readonly size: number;
  /** A strong entity tag with its quotes: the same tag, the same bytes. */
  readonly etag: string | undefined;
  /** The quoted part of a weak entity tag: the same tag may stand for bytes that differ. */
  readonly weakEtag: string | undefined;
  /** As it was sent. */
  readonly lastModified: string | undefined;
}

/** What a header may hold: a server that sends more is not sent it back with every request. */
const MAX_LENGTH = 1024;

/** The state that a reply is about. A tag that is not of the standard's form is as good as none. */
export function validatorsOf(head: ReplyHead, size: number): Validators {
  const tag = parseTag(headerOf(head, "etag"));
  const modified = headerOf(head, "last-modified")?.trim();
  const isPlain = modified !== undefined && modified.length <= MAX_LENGTH && /^[\x20-\x7e]*$/.test(modified);
  const isDate = isPlain && !Number.isNaN(Date.parse(modified)); // which takes much for a date
  return {
    size,
    etag: tag !== undefined && !tag.weak ? tag.text : undefined,
    weakEtag: tag?.weak ? tag.text : undefined,
    lastModified: isDate ? modified : undefined,
  };
}

/**
 * The conditions of a request for a part of that state: If-Match by a strong tag, else If-Unmodified-Since, RFC 9110, 13.1.
 * A weak tag never satisfies If-Match.
 */
export function conditionsFor({ etag, lastModified }: Validators): Record<string, string> {
  if (etag !== undefined) return { "if-match": etag, "if-range": etag };
  return lastModified === undefined ? {} : { "if-unmodified-since": lastModified };
}

/** What is wrong with a reply, seen from what was pinned: another state, or one that it does not tell. */
export type Mismatch = { kind: "changed"; difference: string } | { kind: "untold"; why: string };

/**
 * Whether a reply's tag and time are those pinned; undefined where they are. A field that the server used to send, and
 * left out this once, leaves open what it sent: a part of a state must come with the fields of the whole (RFC 9110, 15.3.7).
 */
export function mismatch(pinned: Validators, head: ReplyHead): Mismatch | undefined {
  const tag = parseTag(headerOf(head, "etag"));
  const tagPinned = pinned.etag ?? pinned.weakEtag;
  if (tagPinned !== undefined) {
    if (tag === undefined) return { kind: "untold", why: "it has no entity tag, which it had before" };
    if (tag.text !== tagPinned)
      return { kind: "changed", difference: `its entity tag is ${tag.text}, not ${tagPinned}` };
    if (pinned.etag !== undefined && !tag.weak) return undefined; // says it all
  }
  const modified = headerOf(head, "last-modified")?.trim();
  if (pinned.lastModified !== undefined) {
    // By If-Range a server need not send it again, where the tag says it all.
    if (modified === undefined) {
      return tagPinned === undefined
        ? { kind: "untold", why: "it has no Last-Modified, which it had before" }
        : undefined;
    }
    if (Date.parse(modified) !== Date.parse(pinned.lastModified)) {
      const shown = printable(modified);
      return { kind: "changed", difference: `it was modified at ${shown}, not at ${pinned.lastModified}` };
    }
  }
  return undefined;
}

/** How two states differ, or undefined where they are the same as far as is told. */
export function differenceOf(pinned: Validators, now: Validators): string | undefined {
  if (now.size !== pinned.size) return `its size is ${now.size} bytes, not ${pinned.size}`;
  const before = pinned.etag ?? pinned.weakEtag;
  const after = now.etag ?? now.weakEtag;
  if (before !== after) return `its entity tag is ${after ?? "not told any more"}, not ${before ?? "untold"}`;
  if (pinned.etag !== undefined) return undefined;
  if (pinned.lastModified === now.lastModified) return undefined;
  return `it was modified at ${now.lastModified ?? "an untold time"}, not at ${pinned.lastModified ?? "an untold time"}`;
}

/** `"abc"` or `W/"abc"`, RFC 9110, 8.8.3. */
function parseTag(text: string | undefined): { text: string; weak: boolean } | undefined {
  if (text === undefined || text.length > MAX_LENGTH) return undefined;
  const match = /^(W\/)?("[\x21\x23-\x7e\x80-\xff]*")$/.exec(text.trim());
  return match === null ? undefined : { text: match[2] as string, weak: match[1] !== undefined };
}

function printable(text: string): string {
  return text.slice(0, 64).replaceAll(/[^\x20-\x7e]/g, "?");
}
