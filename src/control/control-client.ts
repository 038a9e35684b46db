/** Talks to the control socket of a running clone. */
import { request as httpRequest, type IncomingMessage } from "node:http";
import { type Clock, systemClock } from "../base/clock.ts";
import { startDeadline } from "../base/deadline.ts";
import { CloneError, type CloneErrorCode, errnoOf } from "../base/errors.ts";
import type { ControlTarget, Tuning } from "./control-target.ts";
import type { FinalizeAsked } from "./tuning.ts";

/** How long the server may take for what it answers at once, ms. */
const ANSWER_TIMEOUT_MS = 5000;
/** Bytes of an answer; the longest list of regions that a server sends has a few MiB. */
const MOST_ANSWER_BYTES = 2 ** 24;

/**
 * Why there is no answer:
 *
 * - `gone`: nobody listens at the socket
 * - `forbidden`: it is another user's
 * - `silent`: somebody does, and does not answer in time, or not as a control socket does
 */
export type NoAnswer = "gone" | "forbidden" | "silent";

/** The server could not be asked, or what it did is not known. */
export class ControlError extends CloneError {
  override readonly name = "ControlError";
  readonly reason: NoAnswer;

  constructor(reason: NoAnswer, message: string, options: ErrorOptions = {}) {
    super("failed", message, options);
    this.reason = reason;
  }
}

/** The regions as a server tells them. */
export type RegionsTold = ReturnType<ControlTarget["regions"]>;

/** How a request is sent. */
interface Request {
  method: "GET" | "POST";
  path: string;
  body?: object;
  /** Milliseconds, or undefined where the work itself may take any time. */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * A client of one socket; each request is a connection of its own. Everything throws ControlError where there is no answer, the
 * server's own CloneError where it refuses, and the signal's reason where that aborts.
 */
export class ControlClient {
  /** Where the socket is. */
  readonly path: string;
  readonly #timeoutMs: number;
  readonly #clock: Clock;

  constructor(
    path: string,
    { timeoutMs = ANSWER_TIMEOUT_MS, clock = systemClock }: { timeoutMs?: number; clock?: Clock } = {},
  ) {
    this.path = path;
    this.#timeoutMs = timeoutMs;
    this.#clock = clock;
  }

  /** What `clone status --json` prints, unchecked. */
  status(signal?: AbortSignal): Promise<object> {
    return this.#quick({ method: "GET", path: "/status", signal });
  }

  /** The status when its state has changed, the server ends, or `waitMs` are over. */
  nextStatus(waitMs: number, signal?: AbortSignal): Promise<object> {
    return this.#ask({ method: "GET", path: `/status?wait=${waitMs}`, timeoutMs: waitMs + this.#timeoutMs, signal });
  }

  /** At most `most` ranges of regions. */
  async regions(most: number, signal?: AbortSignal): Promise<RegionsTold> {
    return (await this.#quick({ method: "GET", path: `/regions?most=${most}`, signal })) as RegionsTold;
  }

  /** Changes a hydration at once; resolves to the status after it. */
  tune(changes: Tuning, signal?: AbortSignal): Promise<object> {
    return this.#quick({ method: "POST", path: "/tune", body: changes, signal });
  }

  /** Makes the destination stand alone, however long that takes; resolves to what was done. */
  finalize(asked: FinalizeAsked, signal?: AbortSignal): Promise<object> {
    return this.#ask({ method: "POST", path: "/finalize", body: asked, signal });
  }

  #quick(request: Request): Promise<object> {
    return this.#ask({ ...request, timeoutMs: this.#timeoutMs });
  }

  async #ask(request: Request): Promise<object> {
    const { status, text } = await this.#send(request);
    const value = parseObject(text);
    if (status === 200 && value !== undefined) return value;
    if (value !== undefined && typeof value.error === "string") throw refusal(value.error, value);
    throw new ControlError("silent", `Cannot understand what answers at "${this.path}": status ${status}`);
  }

  #send({ method, path, body, timeoutMs, signal }: Request): Promise<{ status: number; text: string }> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const text = body === undefined ? "" : JSON.stringify(body);
      const headers =
        text === "" ? {} : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) };
      const sent = httpRequest({ socketPath: this.path, host: "clone", method, path, headers, agent: false });
      const end = (error?: unknown): void => {
        answered?.();
        signal?.removeEventListener("abort", abort);
        sent.destroy();
        if (error !== undefined) reject(error);
      };
      const abort = (): void => end(signal?.reason);
      const late = (): void =>
        end(new ControlError("silent", `Cannot reach "${this.path}": no answer in ${timeoutMs} ms`));
      const answered = timeoutMs === undefined ? undefined : startDeadline(this.#clock, timeoutMs, late);
      signal?.addEventListener("abort", abort, { once: true });
      sent.on("error", (error) => end(this.#unreachable(error)));
      sent.on("response", (response) => {
        readAll(response).then(
          (answer) => {
            resolve({ status: response.statusCode ?? 0, text: answer });
            end();
          },
          (error: unknown) => end(this.#unreachable(error)),
        );
      });
      sent.end(text);
    });
  }

  #unreachable(error: unknown): ControlError {
    const errno = errnoOf(error);
    const reason =
      errno === "ENOENT" || errno === "ECONNREFUSED" || errno === "ECONNRESET" || errno === "EPIPE"
        ? "gone"
        : errno === "EACCES" || errno === "EPERM"
          ? "forbidden"
          : "silent";
    return new ControlError(reason, `Cannot reach "${this.path}": ${errno ?? (error as Error).message}`, {
      cause: error,
    });
  }
}

async function readAll(response: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  let length = 0;
  for await (const piece of response as AsyncIterable<Buffer>) {
    length += piece.length;
    if (length > MOST_ANSWER_BYTES) throw new Error("the answer is too long");
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}

/** The object that a text is as JSON, or undefined. */
function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

const CODES: readonly string[] = ["failed", "usage", "damaged", "busy", "differs"] satisfies CloneErrorCode[];

/** The server's refusal, as it would be if it had been thrown here. */
function refusal(message: string, { code, hint }: Record<string, unknown>): CloneError {
  const known = CODES.includes(code as string) ? (code as CloneErrorCode) : "failed";
  return new CloneError(known, message, typeof hint === "string" ? { hint } : {});
}
