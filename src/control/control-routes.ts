/** What can be asked of a control socket: one route for each request, from what was asked to what is answered. */
import { systemClock } from "../base/clock.ts";
import { UsageError } from "../base/errors.ts";
import { HttpError } from "./control-error.ts";
import type { ControlTarget } from "./control-target.ts";
import { parseFinalize, parseNothing, parseTuning } from "./tuning.ts";

/** How long an answer may be put off until the state changes, and how often that is looked at, ms. */
const LONGEST_WAIT_MS = 10_000;
const LOOK_INTERVAL_MS = 100;
/** Ranges of regions in one answer. */
const DEFAULT_RANGES = 4096;
const MOST_RANGES = 65536;

/** The type of every answer but the metrics. */
export const JSON_TYPE = "application/json; charset=utf-8";

/** What a request comes to. */
export interface Answer {
  status: number;
  contentType: string;
  text: string;
}

/** A request's means, as its route sees them. */
export interface Asked {
  target: ControlTarget;
  query: URLSearchParams;
  /** The body as JSON; `{}` where there is none. */
  body: unknown;
  /** Aborts when the server closes. */
  closing: AbortSignal;
}

/** One request: what it does, for people, and how it is answered. `answer` throws what the target does. */
export interface Route {
  description: string;
  answer: (asked: Asked) => Answer | Promise<Answer>;
}

/** By method and path. `/` lists them. */
const ROUTES: Record<string, Route> = {
  "GET /": {
    description: "This list",
    answer: () => json(200, { requests: descriptions() }),
  },
  "GET /status": {
    description: `What \`clone status --json\` prints; ?wait=MS: when the state has changed, or after so many milliseconds (at most ${LONGEST_WAIT_MS})`,
    async answer({ target, query, closing }) {
      const waitMs = countAsked(query, "wait", { least: 0, most: LONGEST_WAIT_MS, otherwise: 0 });
      await stateChange(target, waitMs, closing);
      return json(200, target.status());
    },
  },
  "GET /regions": {
    description: `Ranges of hydrated and unreadable regions, half-open; ?most=N of them (${DEFAULT_RANGES}, at most ${MOST_RANGES})`,
    answer({ target, query }) {
      const most = countAsked(query, "most", { least: 1, most: MOST_RANGES, otherwise: DEFAULT_RANGES });
      return json(200, target.regions(most));
    },
  },
  "GET /metrics": {
    description: "Metrics as Prometheus reads them",
    answer: async ({ target }) => ({ status: 200, ...(await target.metrics()) }),
  },
  "POST /tune": {
    description:
      "Changes a running hydration: rate, minRate, threshold, batchSize, paused, hydrateOnRead; answers as /status",
    async answer({ target, body }) {
      await target.tune(parseTuning(body));
      return json(200, target.status());
    },
  },
  "POST /pause": {
    description: "Lets hydration in the background rest; answers as /status",
    async answer({ target, body }) {
      parseNothing(body);
      await target.tune({ paused: true });
      return json(200, target.status());
    },
  },
  "POST /resume": {
    description: "Lets hydration in the background go on; answers as /status",
    async answer({ target, body }) {
      parseNothing(body);
      await target.tune({ paused: false });
      return json(200, target.status());
    },
  },
  "POST /commit": {
    description: "Makes durable what is hydrated so far; answers, afterwards, as /status",
    async answer({ target, body }) {
      parseNothing(body);
      await target.commit();
      return json(200, target.status());
    },
  },
  "POST /finalize": {
    description:
      "Makes the destination stand alone: keepMetadata, acceptUnreadable, withoutSource; answers, afterwards, what was done",
    answer: async ({ target, body }) => json(200, await target.finalize(parseFinalize(body))),
  },
  "POST /stop": {
    description: "Ends the process as SIGTERM does",
    async answer({ target, body }) {
      parseNothing(body);
      await target.stop();
      return json(200, { stopping: true });
    },
  },
};

/** The route of a request, or undefined. `method` and `path` as HTTP has them. */
export function routeOf(method: string, path: string): Route | undefined {
  const name = `${method} ${path}`;
  return Object.hasOwn(ROUTES, name) ? ROUTES[name] : undefined;
}

/** An answer of JSON. */
export function json(status: number, value: object): Answer {
  return { status, contentType: JSON_TYPE, text: `${JSON.stringify(value)}\n` };
}

/** The error for a request that there is not. */
export function unknownRequest(method: string, path: string): HttpError {
  const isThere = Object.keys(ROUTES).some((name) => name.endsWith(` ${path}`));
  const hint = "GET / lists the requests.";
  if (isThere) return new HttpError(405, `Cannot ${method} ${path}: it takes another method`, hint);
  return new HttpError(404, `Cannot ${method} ${path}: there is no such request`, hint);
}

/** The methods that a path does take, as the header `Allow` lists them. */
export function methodsOf(pathname: string): string {
  return Object.keys(ROUTES)
    .filter((name) => name.endsWith(` ${pathname}`))
    .map((name) => name.replace(/ .*/, ""))
    .join(", ");
}

function descriptions(): Record<string, string> {
  return Object.fromEntries(Object.entries(ROUTES).map(([name, { description }]) => [name, description]));
}

function countAsked(
  query: URLSearchParams,
  name: string,
  { least, most, otherwise }: { least: number; most: number; otherwise: number },
): number {
  const text = query.get(name);
  if (text === null) return otherwise;
  const count = /^\d{1,9}$/.test(text) ? Number(text) : -1;
  if (count >= least && count <= most) return count;
  throw new UsageError(`Cannot use the request: ${name} has to be a whole number from ${least} to ${most}`);
}

/**
 * Resolves when the target's state is another one, when `waitMs` are over, or when the server closes: so that whoever follows
 * a clone to its end hears of the end, although the process ends with it.
 */
async function stateChange(target: ControlTarget, waitMs: number, closing: AbortSignal): Promise<void> {
  const stateNow = (): unknown => (target.status() as { state?: unknown }).state;
  const before = stateNow();
  for (let leftMs = waitMs; leftMs > 0 && !closing.aborted && stateNow() === before; leftMs -= LOOK_INTERVAL_MS) {
    await systemClock.sleep(Math.min(leftMs, LOOK_INTERVAL_MS), closing);
  }
}
