/** An object in a bucket, as a thing that is read by HTTP: signed requests, and what S3 means by its refusals. */
import { DeviceError } from "../../base/errors.ts";
import type { Target } from "../http/connections.ts";
import type { Explanation, HttpService } from "../http/http-service.ts";
import { headerOf, type ReplyHead, statusText } from "../http/reply-head.ts";
import { isRegion, type S3Place, s3Target } from "./s3-address.ts";
import type { S3KeySource, S3Keys } from "./s3-credentials.ts";
import { parseS3Error, type S3Error } from "./s3-error.ts";
import { sign } from "./s3-signer.ts";

/** What an object is read with. */
export interface S3ObjectOptions {
  place: S3Place;
  keySource: S3KeySource;
  onNote?: ((line: string) => void) | undefined;
}

/** So often one open may find that the bucket is in another region. */
const MAX_REGION_CHANGES = 2;

/** Refusals that say: later. S3 answers some of them with 400. */
const PASSING = new Set([
  "SlowDown",
  "InternalError",
  "ServiceUnavailable",
  "RequestTimeout",
  "Busy",
  "OperationAborted",
]);

const EXPIRED = new Set(["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"]);

/** Clocks that differ by less than this are taken for the same: a request takes its time, and S3 minds 15 minutes; ms. */
const SAME_CLOCK_MS = 60_000;

/** What users can do about a refusal. */
const HINTS: Record<string, string> = {
  AccessDenied:
    "The credentials in use need the permission s3:GetObject for it (a key that does not exist answers so, too).",
  InvalidAccessKeyId: "The server does not know these keys: are they for this endpoint?",
  SignatureDoesNotMatch: "The secret key is not the one that belongs to the access key.",
  ExpiredToken: "The session has expired: get new credentials.",
  InvalidObjectState: "It is archived (Glacier): it has to be restored before it can be read.",
  NoSuchBucket: "Is it at another endpoint? AWS_ENDPOINT_URL_S3 names one.",
};

/** An object in a bucket. */
export class S3Object implements HttpService {
  readonly kind = "s3";
  readonly name: string;
  readonly #keySource: S3KeySource;
  readonly #onNote: ((line: string) => void) | undefined;
  #place: S3Place;
  #start: Target;
  #regionChanges = 0;
  /** What the server's clock is ahead of ours, ms. */
  #clockAheadMs: number | undefined;
  /** New keys are asked for once, for all requests that were under way with the old ones. */
  #renewing: Promise<boolean> | undefined;

  /** @throws {UsageError} where the endpoint cannot be used */
  constructor({ place, keySource, onNote }: S3ObjectOptions) {
    this.name = `s3://${place.bucket}/${place.key}`;
    this.#place = place;
    this.#start = s3Target(place);
    this.#keySource = keySource;
    this.#onNote = onNote;
  }

  start(): Target {
    return this.#start;
  }

  async authorize(target: Target): Promise<Record<string, string>> {
    const keys = await this.#keySource.keys();
    if (keys === undefined) return {};
    const date = new Date(Date.now() + (this.#clockAheadMs ?? 0));
    return await sign(target, { keys, region: this.#place.region, date });
  }

  /** Never: a signature is for one host. Where S3 redirects to another region, `explain` has gone there. */
  follow(): Target {
    throw new DeviceError(`Cannot open "${this.name}": the endpoint redirects to another one`);
  }

  /** Of a versioned object that version: it can still be read when another has taken its place. */
  pin(target: Target, head: ReplyHead): Target {
    const version = headerOf(head, "x-amz-version-id") ?? "null";
    if (version === "null" || !/^[\x21-\x7e]{1,1024}$/.test(version)) return target;
    return { origin: target.origin, path: `${target.path}?versionId=${encodeURIComponent(version)}` };
  }

  async explain(
    head: ReplyHead,
    text: string,
    sent: Readonly<Record<string, string>>,
  ): Promise<Explanation | undefined> {
    const error = parseS3Error(text);
    const why = [statusText(head.status), error.code, error.message].filter((part) => part !== "").join(": ");
    if (this.#hasOtherRegion(head, error)) return { why, next: "again" };
    if (error.code === "RequestTimeTooSkewed") return this.#explainSkew(head, why, sent);
    if (EXPIRED.has(error.code)) {
      return { why, hint: HINTS.ExpiredToken, next: (await this.#hasNewKeys(sent)) ? "again" : "never" };
    }
    if (PASSING.has(error.code)) return { why, next: "later" };
    if (head.status >= 300 && head.status < 400) {
      return { why: `${why}: the bucket is at another endpoint`, hint: HINTS.NoSuchBucket, next: "never" };
    }
    const hint = HINTS[error.code] ?? (head.status === 403 ? HINTS.AccessDenied : undefined);
    return { why, hint };
  }

  /** The bucket's region, where a reply names another one than we asked in. Requests go there from then on. */
  #hasOtherRegion(head: ReplyHead, error: S3Error): boolean {
    const region = headerOf(head, "x-amz-bucket-region") ?? error.region;
    const isAboutRegion = head.status === 301 || head.status === 307 || head.status === 400;
    if (!isAboutRegion || region === undefined || region === this.#place.region || !isRegion(region)) return false;
    if (this.#regionChanges >= MAX_REGION_CHANGES) return false;
    this.#regionChanges += 1;
    this.#place = { ...this.#place, region };
    this.#start = s3Target(this.#place);
    return true;
  }

  /** Whether there are other keys than those that a request was signed with. */
  async #hasNewKeys(sent: Readonly<Record<string, string>>): Promise<boolean> {
    if (this.#renewing === undefined) {
      const keys = await this.#keySource.keys();
      if (keys !== undefined && !isSignedWith(keys, sent)) return true;
    }
    this.#renewing ??= this.#keySource.renew().finally(() => {
      this.#renewing = undefined;
    });
    return await this.#renewing;
  }

  /**
   * Signatures hold the time. Where our clock is wrong, the server's is taken, as the AWS SDK does: once, unless a clock is set
   * meanwhile. A request that was signed before that is another matter.
   */
  #explainSkew(head: ReplyHead, why: string, sent: Readonly<Record<string, string>>): Explanation {
    const serverMs = Date.parse(headerOf(head, "date") ?? "");
    const hint = "The clock of this machine and the server's differ: set the clock.";
    if (Number.isNaN(serverMs)) return { why, hint, next: "never" };
    const aheadMs = serverMs - Date.now();
    const before = this.#clockAheadMs;
    if (before !== undefined && Math.abs(aheadMs - before) < SAME_CLOCK_MS) {
      const wasSignedThen = Math.abs(signingTime(sent) - serverMs) < SAME_CLOCK_MS;
      return { why, hint, next: wasSignedThen ? "never" : "again" };
    }
    this.#clockAheadMs = aheadMs;
    if (before !== undefined) return { why, hint, next: "again" };
    const seconds = Math.round(Math.abs(this.#clockAheadMs) / 1000);
    const direction = this.#clockAheadMs > 0 ? "behind" : "ahead of";
    this.#onNote?.(`The clock of this machine is ${seconds} s ${direction} that of "${this.name}": set it`);
    return { why, next: "again" };
  }
}

function isSignedWith({ accessKeyId, sessionToken }: S3Keys, sent: Readonly<Record<string, string>>): boolean {
  const { authorization = "", "x-amz-security-token": token } = sent;
  return authorization.includes(`Credential=${accessKeyId}/`) && token === sessionToken;
}

/** When a request was signed, ms since 1970; NaN of one that was not. */
function signingTime({ "x-amz-date": date = "" }: Readonly<Record<string, string>>): number {
  return Date.parse(date.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, "$1-$2-$3T$4:$5:$6Z"));
}
