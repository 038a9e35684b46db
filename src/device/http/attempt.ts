/** One request for a range, and what came of it: head, body and the connection judged together. */
import type { Connections, Target } from "./connections.ts";
import type { BodyUse } from "./exchange.ts";
import type { HttpService } from "./http-service.ts";
import { type AskedRange, judgeReply, type Verdict } from "./range-reply.ts";
import type { ReplyHead } from "./reply-head.ts";
import { type TransportError, transportError } from "./transport-error.ts";
import { conditionsFor } from "./validators.ts";

/** What came of a request. */
export type Attempt =
  /**
   * The first `received` bytes of what was asked for are in the buffer. Fewer than asked for where the server sent a part
   * (then there is no `failure`), or the connection broke.
   */
  | { kind: "data"; head: ReplyHead; received: number; total: number; failure: TransportError | undefined }
  /** There is no reply. */
  | { kind: "failed"; failure: TransportError }
  /** What was wrong with the request is put right. */
  | { kind: "again"; why: string }
  | Exclude<Verdict, { kind: "data" }>;

/** How a range is asked for. */
export interface AttemptOptions {
  connections: Connections;
  service: HttpService;
  target: Target;
  asked: AskedRange;
  /** `asked.length` bytes. */
  buffer: Uint8Array;
  signal: AbortSignal;
}

/** Asks for a range once. @throws {CloneError} where it cannot even be asked for, as without credentials */
export async function attempt({
  connections,
  service,
  target,
  asked,
  buffer,
  signal,
}: AttemptOptions): Promise<Attempt> {
  const own: Record<string, string> = {
    "user-agent": "dmclone",
    accept: "*/*",
    "accept-encoding": "identity",
    range: `bytes=${asked.offset}-${asked.offset + asked.length - 1}`,
    ...(asked.pinned === undefined ? {} : conditionsFor(asked.pinned)),
  };
  const headers = { ...own, ...(await service.authorize(target, own)) };
  let verdict: Verdict | undefined;
  const use = (head: ReplyHead): BodyUse => {
    verdict = judgeReply(head, asked);
    if (verdict.kind === "data") return { kind: "into", buffer: buffer.subarray(0, verdict.length) };
    // An error's text may tell more. What claims to be content is not read, however long it is.
    return head.status === 200 || head.status === 206 ? { kind: "nothing" } : { kind: "text" };
  };
  const { head, received, text, error } = await connections.get(target, headers, use, signal);
  const failure = error === undefined ? undefined : transportError(error);
  if (head === undefined || verdict === undefined) return { kind: "failed", failure: failure ?? noReply() };
  return verdict.kind === "data"
    ? judgeBody(verdict, { head, received, failure })
    : explained(verdict, await service.explain(head, text, headers));
}

function judgeBody(
  { length, total }: Extract<Verdict, { kind: "data" }>,
  { head, received, failure }: { head: ReplyHead; received: number; failure: TransportError | undefined },
): Attempt {
  if (failure === undefined && received < length) {
    return { kind: "wrong", why: `it sends ${received} bytes where it announced ${length}` };
  }
  if (failure?.kind === "wrong") return { kind: "wrong", why: failure.why }; // then its first bytes are doubtful too
  return { kind: "data", head, received, total, failure: received < length ? failure : undefined };
}

function explained(
  verdict: Exclude<Verdict, { kind: "data" }>,
  explanation: Awaited<ReturnType<HttpService["explain"]>>,
): Attempt {
  if (explanation === undefined || verdict.kind === "changed" || verdict.kind === "wrong") return verdict;
  const { why, hint, next } = explanation;
  const afterMs = verdict.kind === "later" ? verdict.afterMs : undefined;
  if (next === "again") return { kind: "again", why };
  if (next === "later" || (next === undefined && verdict.kind === "later")) {
    return { kind: "later", status: verdict.status, why, afterMs };
  }
  if (next === undefined && verdict.kind === "moved") return verdict;
  return { kind: "refused", status: verdict.status, why, ...(hint === undefined ? {} : { hint }) };
}

function noReply(): TransportError {
  return { kind: "cut", why: "there was no reply", errno: undefined };
}
