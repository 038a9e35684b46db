/**
 * An object that a server holds, read in ranges: found once, then pinned to where and what it was.
 *
 *     find:  start ──► redirects, at most 10 ──► 206 for byte 0: size, entity tag, time; all pinned
 *     read:  pinned place, If-Match ──┬── data               checked, into the caller's buffer
 *                                     ├── broke, 429, 5xx    again, from the first byte that is missing, with patience
 *                                     ├── moved, 403, …      found anew, once: signed URLs expire. It must be the same object
 *                                     ├── another state      ChangedError, and for every read from then on
 *                                     └── no                 DeviceError
 *
 * Where bytes cannot be had though the server answers, it is asked for a few others before that is told: else they are not what is
 * bad, the server is, and whoever reads would go from one region to the next and find all of them unreadable.
 */
import { setMaxListeners } from "node:events";
import type { Clock } from "../../base/clock.ts";
import { ChangedError, DeviceError } from "../../base/errors.ts";
import { type Attempt, attempt } from "./attempt.ts";
import type { Connections, Target } from "./connections.ts";
import type { HttpService } from "./http-service.ts";
import { Outage } from "./outage.ts";
import { Patience } from "./patience.ts";
import type { AskedRange } from "./range-reply.ts";
import { type ReplyHead, statusText } from "./reply-head.ts";
import { safeUrl } from "./safe-url.ts";
import { Slots } from "./slots.ts";
import { differenceOf, type Validators, validatorsOf } from "./validators.ts";

/** What an object needs to be read. */
export interface RemoteObjectOptions {
  service: HttpService;
  connections: Connections;
  /** Most requests at once. */
  requests: number;
  /** How long a request that gets nothing is tried again, ms. */
  patienceMs: number;
  clock: Clock;
  random: () => number;
  onNote?: ((line: string) => void) | undefined;
}

/** Where an object is, and what it is. */
interface Found {
  readonly target: Target;
  readonly pinned: Validators;
  readonly isRedirected: boolean;
}

const MAX_REDIRECTS = 10;

/** So often the way to the object is asked for anew within one request. */
const MAX_DETOURS = 2;

/** Fewer bytes than this by one request are no progress: else a server might have us come again for every byte. */
const LEAST_PROGRESS = 1024;

/** Bytes asked for elsewhere, to see whether the server works. */
const PROBE_BYTES = 4096;

/** Replies of a place that a redirect led to that may only mean that its time is over. */
const EXPIRED = new Set([400, 401, 403, 404, 410]);

/** What somebody was about to do: the beginning of the sentence that tells that it failed. */
interface Purpose {
  text: string;
  offset?: number;
  length?: number;
  isOpening: boolean;
}

/** An object, found. */
export class RemoteObject {
  readonly #options: RemoteObjectOptions;
  readonly #slots: Slots;
  readonly #outage: Outage;
  readonly #closing = new AbortController();
  #found: Found | undefined;
  #finding: Promise<Found> | undefined;
  #changed: string | undefined;
  /** Until then the server wants no requests; by the clock. */
  #notBefore = 0;

  private constructor(options: RemoteObjectOptions) {
    this.#options = options;
    setMaxListeners(0, this.#closing.signal); // every request under way listens; Slots and callers bound them
    this.#slots = new Slots(options.requests);
    this.#outage = new Outage(options.service.name, options.clock, options.onNote);
  }

  /** Finds the object. @throws {DeviceError} where it is not to be had, or not in ranges */
  static async find(options: RemoteObjectOptions, signal?: AbortSignal): Promise<RemoteObject> {
    const object = new RemoteObject(options);
    const end = () => object.#closing.abort(signal?.reason);
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end, { once: true });
    try {
      const found = await object.#find({ text: "open", isOpening: true });
      object.#found = found;
      await options.connections.keepOnly([options.service.start().origin, found.target.origin]);
      return object;
    } catch (error) {
      await object.close();
      throw error;
    } finally {
      signal?.removeEventListener("abort", end);
    }
  }

  /** The state that was pinned. */
  get pinned(): Validators {
    return (this.#found as Found).pinned;
  }

  /** How often a connection was made anew after one had broken. */
  get reconnections(): number {
    return this.#outage.ended;
  }

  /** How it differs from what was pinned, as far as replies have told. */
  get changed(): string | undefined {
    return this.#changed;
  }

  /** Ends what is under way with an error, and cuts all connections. */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#options.connections.close();
  }

  /**
   * Fills `buffer` from `offset`. The buffer is not touched any more once it has settled.
   * @throws {ChangedError} where the object is not what was pinned
   * @throws {DeviceError} where it cannot be read
   */
  async read(offset: number, buffer: Uint8Array): Promise<void> {
    const purpose = {
      text: `read ${buffer.length} bytes at ${offset} from`,
      offset,
      length: buffer.length,
      isOpening: false,
    };
    const patience = this.#patience();
    let detours = 0;
    for (let done = 0; done < buffer.length; ) {
      if (this.#changed !== undefined) throw this.#changedError(purpose, this.#changed);
      const found = this.#found as Found;
      const rest = buffer.subarray(done);
      const asked = { offset: offset + done, length: rest.length, pinned: found.pinned };
      const result = await this.#ask(found.target, asked, rest, purpose, patience);
      if (result.kind === "data") {
        // Nor is the beginning of what then falls silent, each time: a minute for half of the rest would be many minutes.
        if (result.received >= Math.min(LEAST_PROGRESS, rest.length) && !wasSilent(result)) patience.progress();
        done += result.received;
        if (result.failure === undefined) continue;
      }
      if (mayHaveMoved(result, found) && detours < MAX_DETOURS) {
        detours += 1;
        await this.#findAgain(found, purpose);
      } else {
        const place = found.isRedirected ? found.target : undefined;
        await this.#bear(result, purpose, patience, { place, stuckAt: offset + done });
      }
    }
  }

  /** From the start, through redirects, to the object. */
  async #find(purpose: Purpose): Promise<Found> {
    const { service } = this.#options;
    const patience = this.#patience();
    let target = service.start();
    let redirects = 0;
    for (;;) {
      const asked = { offset: 0, length: 1, pinned: undefined };
      const result = await this.#ask(target, asked, new Uint8Array(1), purpose, patience);
      if (result.kind === "data" && result.received === 1) {
        const pinned = validatorsOf(result.head, result.total);
        target = await this.#pin(target, result.head, pinned, purpose);
        return { target, pinned, isRedirected: redirects > 0 };
      }
      if (result.kind === "moved" && result.to !== undefined) {
        redirects += 1;
        if (redirects > MAX_REDIRECTS) throw this.#error(purpose, { why: `more than ${MAX_REDIRECTS} redirects` });
        target = service.follow(target, result.to);
      } else {
        await this.#bear(result, purpose, patience, { place: redirects > 0 ? target : undefined });
        if (result.kind === "again") target = service.start(); // it may begin elsewhere now
      }
    }
  }

  /** The target that stays with this state of the object, where there is one, and whoever asks may use it. */
  async #pin(target: Target, head: ReplyHead, pinned: Validators, purpose: Purpose): Promise<Target> {
    const lasting = this.#options.service.pin(target, head);
    if (lasting.path === target.path) return target;
    const patience = this.#patience();
    for (;;) {
      const result = await this.#ask(lasting, { offset: 0, length: 1, pinned }, new Uint8Array(1), purpose, patience);
      if (result.kind === "data" && result.received === 1) return lasting;
      if (result.kind === "refused") return target; // permission to read an object is not yet one to read its versions
      await this.#bear(result, purpose, patience);
    }
  }

  /** For all who found out at the same time that it is not where it was. */
  async #findAgain(lost: Found, purpose: Purpose): Promise<void> {
    if (this.#found !== lost) return; // somebody else did
    this.#finding ??= this.#find({ text: "open", isOpening: false }).finally(() => (this.#finding = undefined));
    const found = await this.#finding;
    const difference = differenceOf(lost.pinned, found.pinned);
    if (difference !== undefined) {
      this.#changed ??= difference;
      throw this.#changedError(purpose, difference);
    }
    if (this.#found !== lost) return;
    this.#found = found;
    await this.#options.connections.keepOnly([this.#options.service.start().origin, found.target.origin]);
  }

  async #ask(
    target: Target,
    asked: AskedRange,
    buffer: Uint8Array,
    purpose: Purpose,
    patience: Patience,
  ): Promise<Attempt> {
    const { service, connections, clock } = this.#options;
    const { signal } = this.#closing;
    const answered = await this.#slots.run(async () => {
      const waitMs = this.#notBefore - clock.now();
      if (waitMs > 0) await clock.sleep(waitMs, signal);
      this.#checkOpen(purpose);
      return await attempt({ connections, service, target, asked, buffer, signal });
    });
    this.#checkOpen(purpose);
    if (answered.kind === "changed") {
      this.#changed ??= answered.difference;
      throw this.#changedError(purpose, answered.difference);
    }
    this.#note(answered, patience);
    return answered;
  }

  #note(result: Attempt, patience: Patience): void {
    const failures = patience.tries + 1;
    const failure = result.kind === "data" || result.kind === "failed" ? result.failure : undefined;
    if (failure !== undefined) {
      const count = wasSilent(result) ? failures + 1 : failures; // it took a while, which is worth a word at once
      this.#outage.failed({ why: failure.why, failures: count, isBroken: true });
    } else if (result.kind === "later" || result.kind === "wrong") {
      this.#outage.failed({ why: result.why, failures, isBroken: false });
    } else if (result.kind === "data") this.#outage.worked();
  }

  /** Waits until there is reason to try again, or throws. */
  async #bear(
    result: Attempt,
    purpose: Purpose,
    patience: Patience,
    { place, stuckAt }: { place?: Target | undefined; stuckAt?: number } = {},
  ): Promise<void> {
    const { clock } = this.#options;
    const trouble = troubleOf(result, place);
    if (trouble.isFinal || (purpose.isOpening && trouble.isFinalAtOpening)) throw this.#error(purpose, trouble);
    const pauseMs = patience.pauseMs(trouble);
    if (pauseMs === undefined) {
      const error = { ...trouble, why: givenUp(trouble, patience.failures) };
      if (trouble.away || stuckAt === undefined || (await this.#worksElsewhere(stuckAt, purpose))) {
        throw this.#error(purpose, error);
      }
      throw this.#error(purpose, { ...error, away: true, ...(trouble.isWrong ? { errno: "EPROTO" } : {}) });
    }
    // What the server asks for counts for all requests; the pauses of our own are each request's.
    if (trouble.afterMs !== undefined) this.#notBefore = Math.max(this.#notBefore, clock.now() + trouble.afterMs);
    await clock.sleep(pauseMs, this.#closing.signal);
  }

  /** Whether bytes can be had at other places than where a read is stuck. */
  async #worksElsewhere(stuckAt: number, purpose: Purpose): Promise<boolean> {
    const { target, pinned } = this.#found as Found;
    const length = Math.min(PROBE_BYTES, pinned.size);
    const places = [0, 0.5, 1].map((share) => Math.floor((pinned.size - length) * share));
    const elsewhere = places.filter((offset) => stuckAt < offset || stuckAt >= offset + length);
    for (const offset of elsewhere) {
      const asked = { offset, length, pinned };
      const result = await this.#ask(target, asked, new Uint8Array(length), purpose, this.#patience());
      if (result.kind === "data" && result.received === length) return true;
      if (result.kind === "failed" || wasSilent(result)) return false; // else it would be waited for again and again
    }
    return elsewhere.length === 0;
  }

  #checkOpen(purpose: Purpose): void {
    const { signal } = this.#closing;
    if (purpose.isOpening) signal.throwIfAborted();
    else if (signal.aborted) throw this.#error(purpose, { why: "it was closed meanwhile", errno: "ECANCELED" });
  }

  #patience(): Patience {
    const { clock, random, patienceMs } = this.#options;
    return new Patience({ clock, random, budgetMs: patienceMs });
  }

  #error(
    { text, offset, length }: Purpose,
    { why, hint, errno = "EIO", away = false }: Pick<Trouble, "why" | "hint" | "errno"> & { away?: boolean },
  ): DeviceError {
    return new DeviceError(`Cannot ${text} "${this.#options.service.name}": ${why}`, {
      errno,
      away,
      ...(offset === undefined ? {} : { offset }),
      ...(length === undefined ? {} : { length }),
      ...(hint === undefined ? {} : { hint }),
    });
  }

  #changedError({ text, offset = 0, length = 0 }: Purpose, difference: string): ChangedError {
    const message = `Cannot ${text} "${this.#options.service.name}": it has changed: ${difference}`;
    return new ChangedError(message, { difference, offset, length });
  }
}

/** What is to be said and done about a reply that is no data. */
interface Trouble {
  why: string;
  hint?: string | undefined;
  errno?: string | undefined;
  /** Whether any other request would fare the same, as `DeviceError.away` tells. */
  away: boolean;
  /** What the server asks for, ms. */
  afterMs?: number | undefined;
  isWrong?: boolean;
  isFinal?: boolean;
  isFinalAtOpening?: boolean;
}

/** Faults of a server that may be about one part of what it holds: a bad block of its own disk. */
const MAY_BE_OF_A_PART = new Set([500, 507, 509, 598, 599]);

/** @param place where a redirect led, to be named */
function troubleOf(result: Attempt, place: Target | undefined): Trouble {
  const trouble = plainTroubleOf(result);
  if (place === undefined) return trouble;
  return {
    ...trouble,
    why: `${trouble.why} at "${safeUrl(`${place.origin}${place.path}`).text}", where it redirects to`,
  };
}

function plainTroubleOf(result: Attempt): Trouble {
  switch (result.kind) {
    case "data": {
      // It was there, and said that it would send the bytes: where it never gets beyond them, they are what is bad.
      const { why, kind } = result.failure ?? { why: "it sent nothing", kind: "wrong" };
      return { why, errno: "EIO", away: false, isWrong: kind === "wrong" || result.received < LEAST_PROGRESS };
    }
    case "failed": {
      const { kind, why, hint, errno } = result.failure;
      const isWrong = kind === "wrong";
      const isFinal = kind === "untrusted";
      return { why, hint, errno, away: true, isWrong, isFinal, isFinalAtOpening: kind === "unreachable" || isWrong };
    }
    case "later": {
      const away = !MAY_BE_OF_A_PART.has(result.status);
      return { why: result.why, afterMs: result.afterMs, errno: away ? "EAGAIN" : "EIO", away };
    }
    case "wrong":
      return { why: result.why, hint: result.hint, away: false, isWrong: true, isFinalAtOpening: true };
    case "again":
      return { why: result.why, away: true, isWrong: true };
    case "moved":
      return {
        why: `${statusText(result.status)} that leads nowhere`,
        away: true,
        isWrong: true,
        isFinalAtOpening: true,
      };
    case "changed":
      return { why: result.difference, away: false, isFinal: true };
    case "refused":
      return { why: result.why, hint: result.hint, errno: errnoFor(result.status), away: false, isFinal: true };
  }
}

function wasSilent(result: Attempt): boolean {
  return (result.kind === "data" || result.kind === "failed") && result.failure?.errno === "ETIMEDOUT";
}

function errnoFor(status: number): string {
  if (status === 401 || status === 403) return "EACCES";
  return status === 404 || status === 410 ? "ENOENT" : "EIO";
}

function givenUp({ why, afterMs = 0 }: Trouble, attempts: number): string {
  const asks = afterMs > 0 ? `, and asks to wait ${Math.ceil(afterMs / 1000)} s` : "";
  return attempts > 1 ? `${why}${asks} (tried ${attempts} times)` : `${why}${asks}`;
}

/** Whether the object may be found again by asking from the start. */
function mayHaveMoved(result: Attempt, { isRedirected }: Found): boolean {
  if (result.kind === "moved") return true;
  return result.kind === "refused" && isRedirected && EXPIRED.has(result.status);
}
