/** The head of an HTTP reply, and what of it is read everywhere. */
import { STATUS_CODES } from "node:http";

/** Field names in lower case; a field that was sent more than once is a list. */
export type Headers = Readonly<Record<string, string | string[] | undefined>>;

/** Status and header fields of a reply. */
export interface ReplyHead {
  readonly status: number;
  readonly headers: Headers;
}

/** A header field's value; one that was sent more than once is joined, so that no parser takes it for one value. */
export function headerOf({ headers }: ReplyHead, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value.join(", ") : value;
}

/** `HTTP 404 Not Found`. The reason phrase is the standard's: what a server sends there is not repeated. */
export function statusText(status: number): string {
  const phrase = STATUS_CODES[status];
  return phrase === undefined ? `HTTP ${status}` : `HTTP ${status} ${phrase}`;
}

/** What a Content-Range says: first and last byte, and the size of the whole; RFC 9110, 14.4. */
export interface ContentRange {
  first: number;
  last: number;
  total: number;
}

/** A Content-Range of bytes with a known total, or undefined for anything else. */
export function parseContentRange(text: string | undefined): ContentRange | undefined {
  const match = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/i.exec(text?.trim() ?? "");
  if (match === null) return undefined;
  const [first, last, total] = match.slice(1).map(Number) as [number, number, number];
  if (![first, last, total].every(Number.isSafeInteger) || first > last || last >= total) return undefined;
  return { first, last, total };
}

/** The total of an unsatisfied range, as of a 416: that of `bytes *` + `/1234`; undefined where there is none. */
export function unsatisfiedTotal(text: string | undefined): number | undefined {
  const match = /^bytes \*\/(\d{1,16})$/i.exec(text?.trim() ?? "");
  return match === null ? undefined : Number(match[1]);
}

/**
 * How long a reply asks to wait, ms, or undefined where it does not: Retry-After in seconds or as a date, RFC 9110,
 * 10.2.3. A date is seen from the reply's own Date, so that it does not matter whose clock is wrong.
 */
export function retryAfterMs(head: ReplyHead, nowMs: number = Date.now()): number | undefined {
  const text = headerOf(head, "retry-after")?.trim();
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000;
  const until = Date.parse(text);
  if (Number.isNaN(until) || /^[\d.+-]*$/.test(text)) return undefined;
  const sent = Date.parse(headerOf(head, "date") ?? "");
  return Math.max(0, until - (Number.isNaN(sent) ? nowMs : sent));
}
