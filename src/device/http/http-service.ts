/** What differs between kinds of servers that are read by HTTP: where an object is, who asks, and what a refusal means. */
import type { Target } from "./connections.ts";
import type { ReplyHead } from "./reply-head.ts";

/** What a reply that is no data means, beyond its status. */
export interface Explanation {
  /** In place of the status. */
  why: string;
  hint?: string | undefined;
  /**
   * What to do: ask `again` at once, since what was wrong with the request is put right; `later`; or `never`. By default
   * what the status says.
   */
  next?: "again" | "later" | "never" | undefined;
}

/** A kind of server, and an object at it. */
export interface HttpService {
  /** As in `RemoteIdentity`. */
  readonly kind: string;
  /** The object, for messages: never holds a credential. */
  readonly name: string;
  /** Where to begin asking. */
  start(): Target;
  /** What a request is sent besides its own headers. @throws {CloneError} where there are no credentials */
  authorize(target: Target, headers: Record<string, string>): Promise<Record<string, string>>;
  /**
   * Where a redirect leads.
   * @throws {CloneError} where it is not to be followed
   */
  follow(from: Target, location: string): Target;
  /** The target by which later requests get the state of the object that this reply is about. */
  pin(target: Target, head: ReplyHead): Target;
  /**
   * What a reply that is no data means, or undefined where its status says all. `text` is the beginning of its body, `sent` are the
   * headers of the request: what was wrong with those may have been put right since, for another request.
   */
  explain(head: ReplyHead, text: string, sent: Readonly<Record<string, string>>): Promise<Explanation | undefined>;
}
