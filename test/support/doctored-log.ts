/** Logs of a clone's disk as they would be if it did not keep to the order: what a judge that can be trusted finds to lie. */
import { judgeLog, type LoggedClone } from "./log-judge.ts";
import { type SeededRandom, seededRandom } from "./random.ts";
import type { LoggedRequest } from "./write-log.ts";

/** How the order is broken: a superblock before the flush that it came behind, or a write to the destination that never came. */
export type Doctoring = "late flush" | "lost write";

/**
 * How many of some doctored logs of a life are found to lie. Most are, not all: what the flush covered may be durable by an
 * earlier one, and what was written may have been written again.
 */
export async function countLies(
  told: LoggedClone,
  doctoring: Doctoring,
  { logs, seed }: { logs: number; seed: number },
): Promise<number> {
  const random = seededRandom(seed);
  const places = placesOf(told, doctoring);
  let found = 0;
  for (let look = 0; look < logs && places.length > 0; look++) {
    const requests = doctor(told.requests, random.pick(places), doctoring);
    found += await lies({ ...told, requests }, seededRandom(seed));
  }
  return found;
}

/** The entries at which a log can be doctored so. */
function placesOf({ requests, destination }: LoggedClone, doctoring: Doctoring): number[] {
  const firstFlush = requests.findIndex(({ kind }) => kind === "flush");
  return [...requests.keys()].filter((index) => {
    const request = requests[index] as LoggedRequest;
    if (request.kind !== "write") return false;
    if (doctoring === "lost write") return request.offset < destination.length;
    return request.offset === destination.length && firstFlush >= 0 && firstFlush < index;
  });
}

/** As many entries as before: checkpoints count them. */
function doctor(requests: LoggedRequest[], index: number, doctoring: Doctoring): LoggedRequest[] {
  if (doctoring === "lost write") return requests.with(index, { kind: "discard", offset: 0, length: 0 });
  const flush = requests.findLastIndex(({ kind }, at) => at < index && kind === "flush");
  const between = requests.slice(flush + 1, index + 1);
  return [...requests.slice(0, flush), ...between, { kind: "flush" }, ...requests.slice(index + 1)];
}

async function lies(told: LoggedClone, random: SeededRandom): Promise<number> {
  return (await judgeLog(told, random, { mostWrong: 1 })).wrong.length > 0 ? 1 : 0;
}
