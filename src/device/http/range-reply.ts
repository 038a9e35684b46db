/**
 * What a reply to a request for a range means, decided by its head alone: nothing of a body is taken for data before. A
 * reply is data only where everything that it says is what was asked for.
 */
import {
  headerOf,
  parseContentRange,
  type ReplyHead,
  retryAfterMs,
  statusText,
  unsatisfiedTotal,
} from "./reply-head.ts";
import { mismatch, type Validators } from "./validators.ts";

/** What was asked for, bytes, and of which state of the object. */
export interface AskedRange {
  readonly offset: number;
  readonly length: number;
  /** Undefined for the first request, which finds it out. */
  readonly pinned: Validators | undefined;
}

/** What a reply's head says. */
export type Verdict =
  /** Its body is `length` bytes from the offset asked for, of an object of `total` bytes. */
  | { kind: "data"; length: number; total: number }
  /** The same request may be answered better, later: after `afterMs` where it tells. */
  | { kind: "later"; status: number; why: string; afterMs: number | undefined }
  /** It is no answer to the request. A server that does so now and then is tried again, though not as often. */
  | { kind: "wrong"; why: string; hint?: string }
  /** It is at another place. */
  | { kind: "moved"; status: number; to: string | undefined }
  /** The object is not what was pinned. */
  | { kind: "changed"; difference: string }
  /** No, for good. */
  | { kind: "refused"; status: number; why: string; hint?: string };

/** A part of what was asked for that is shorter than this is not worth a request (bytes). */
const SHORTEST_PART = 65536;

/** Replies that say nothing about the object, only about the server at this moment. */
const PASSING = new Set([408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529, 530, 598, 599]);

const MOVED = new Set([301, 302, 303, 307, 308]);

const NO_RANGES = "A source must be read in parts: the server has to answer range requests (RFC 9110, 14).";

/** Judges a reply by its head. */
export function judgeReply(head: ReplyHead, asked: AskedRange): Verdict {
  const { status } = head;
  if (status === 206) return judgePart(head, asked);
  if (status === 200) return judgeWhole(head, asked);
  if (MOVED.has(status)) return { kind: "moved", status, to: headerOf(head, "location") };
  if (PASSING.has(status)) return { kind: "later", status, why: statusText(status), afterMs: retryAfterMs(head) };
  if (status === 412 && asked.pinned !== undefined) {
    const { etag, lastModified } = asked.pinned;
    const before = etag === undefined ? `the one modified at ${lastModified}` : `the one with the entity tag ${etag}`;
    return { kind: "changed", difference: `it is not ${before} any more` };
  }
  if (status === 416) return judgeUnsatisfied(head, asked);
  return { kind: "refused", status, why: statusText(status), ...hintFor(status) };
}

function judgePart(head: ReplyHead, { offset, length, pinned }: AskedRange): Verdict {
  const wrong = (why: string): Verdict => ({ kind: "wrong", why });
  const encoded = encodingOf(head);
  if (encoded !== undefined) return wrong(`it sends its content encoded (${encoded}), though not asked to`);
  const type = headerOf(head, "content-type") ?? "";
  if (/^\s*multipart\/byteranges/i.test(type)) return wrong("it sends several ranges, though asked for one");
  const range = parseContentRange(headerOf(head, "content-range"));
  if (range === undefined) return wrong("it sends a part without saying which (Content-Range)");

  if (pinned !== undefined) {
    if (range.total !== pinned.size) return changedSize(range.total, pinned);
    const found = mismatch(pinned, head);
    if (found?.kind === "changed") return found;
    if (found !== undefined) return wrong(found.why);
  }
  const got = range.last - range.first + 1;
  const fits = range.first === offset && got <= length && (got === length || got >= Math.min(length, SHORTEST_PART));
  if (!fits) {
    return wrong(
      `it sends bytes ${range.first} to ${range.last}, not ${offset} to ${offset + length - 1} as asked for`,
    );
  }
  const announced = headerOf(head, "content-length");
  if (announced !== undefined && announced.trim() !== String(got)) {
    return wrong(`it announces ${/^\d{1,16}$/.test(announced) ? announced : "an unclear number of"} bytes for ${got}`);
  }
  return { kind: "data", length: got, total: range.total };
}

/** A 200 is the whole object: of one that changed, by If-Range; or the server knows no ranges. */
function judgeWhole(head: ReplyHead, { pinned }: AskedRange): Verdict {
  if (pinned === undefined) {
    if (headerOf(head, "content-length") === "0") return refuseEmpty(200);
    return { kind: "refused", status: 200, why: "the server sends only the whole of it, no ranges", hint: NO_RANGES };
  }
  const found = mismatch(pinned, head);
  if (found?.kind === "changed") return found;
  const length = headerOf(head, "content-length");
  if (length !== undefined && /^\d{1,16}$/.test(length) && encodingOf(head) === undefined) {
    if (Number(length) !== pinned.size) return changedSize(Number(length), pinned);
  }
  return { kind: "wrong", why: "it sends the whole in place of a part", hint: NO_RANGES };
}

function judgeUnsatisfied(head: ReplyHead, { pinned }: AskedRange): Verdict {
  const total = unsatisfiedTotal(headerOf(head, "content-range"));
  if (pinned === undefined && (total ?? 0) === 0) return refuseEmpty(416);
  if (pinned !== undefined && total !== undefined && total !== pinned.size) return changedSize(total, pinned);
  return { kind: "refused", status: 416, why: statusText(416) };
}

function refuseEmpty(status: number): Verdict {
  return { kind: "refused", status, why: "it is empty" };
}

function changedSize(size: number, pinned: Validators): Verdict {
  return { kind: "changed", difference: `its size is ${size} bytes, not ${pinned.size}` };
}

/** A content or transfer coding that changes the bytes, or undefined. */
function encodingOf(head: ReplyHead): string | undefined {
  const content = (headerOf(head, "content-encoding") ?? "").trim().toLowerCase();
  const transfer = (headerOf(head, "transfer-encoding") ?? "").trim().toLowerCase();
  const coding = [content, transfer].find((each) => !["", "identity", "chunked"].includes(each));
  return coding?.slice(0, 32).replaceAll(/[^a-z0-9, -]/g, "?");
}

function hintFor(status: number): { hint?: string } {
  if (status === 401 || status === 403) {
    return { hint: "Credentials come from ~/.netrc (or the file that NETRC names), or from --header-file FILE." };
  }
  if (status === 407)
    return { hint: "The proxy's user and password belong into the URL in http_proxy or https_proxy." };
  return {};
}
