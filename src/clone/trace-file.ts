/** `--order`: a file with a trace becomes the order in which a clone's regions are hydrated. */
import { open } from "node:fs/promises";
import { CloneError, errnoOf } from "../base/errors.ts";
import type { Geometry } from "../base/geometry.ts";
import { formatSize } from "../base/units.ts";
import { HydrationOrder } from "../engine/hydration-order.ts";
import { MOST_RANGES, type Trace, TraceParser } from "./trace-codec.ts";

/** Characters of the longest line that is looked at. */
const LONGEST_LINE = 4096;
/** Bytes of the longest file: several times what the ranges that count take. */
const LONGEST_FILE = 2 ** 28;
const CHUNK = 65_536;

/**
 * Reads a trace, from a file or a pipe. A last line that does not end, as a recorder that was killed leaves it, counts only if
 * it can be understood.
 * @throws {CloneError} where it cannot be read, or is no trace
 */
export async function readTrace(path: string, { signal }: { signal?: AbortSignal } = {}): Promise<Trace> {
  const parser = new TraceParser(path);
  let unfinished = "";
  for await (const text of chunksOf(path, signal)) {
    const lines = (unfinished + text).split("\n");
    unfinished = lines.pop() ?? "";
    for (const line of lines) {
      if (line.length > LONGEST_LINE) parser.refuseLong();
      if (!parser.take(line)) return parser.trace;
    }
    if (unfinished.length > LONGEST_LINE) parser.refuseLong();
  }
  takeUnfinished(parser, unfinished);
  parser.end();
  return parser.trace;
}

function takeUnfinished(parser: TraceParser, line: string): void {
  try {
    if (line !== "") parser.take(line);
  } catch (error) {
    if (!(error instanceof CloneError)) throw error;
  }
}

/** A file's text, a byte a character: a trace has no others than those of ASCII. */
async function* chunksOf(path: string, signal: AbortSignal | undefined): AsyncGenerator<string> {
  try {
    await using file = await open(path, "r");
    const buffer = Buffer.allocUnsafe(CHUNK);
    for (let total = 0; ; ) {
      signal?.throwIfAborted();
      const { bytesRead } = await file.read(buffer, 0, CHUNK, null);
      if (bytesRead === 0) return;
      total += bytesRead;
      if (total > LONGEST_FILE) throw new CloneError("failed", `Cannot use the trace "${path}": it is too long`);
      yield buffer.toString("latin1", 0, bytesRead);
    }
  } catch (error) {
    if (error instanceof CloneError || errnoOf(error) === undefined) throw error;
    throw new CloneError("failed", `Cannot read the trace "${path}": ${errnoOf(error)}`, { cause: error });
  }
}

/** The regions that a trace names, in its order. What lies outside the image is left out, and `onWarning` hears of it once. */
export function orderOf(trace: Trace, geometry: Geometry, onWarning: (warning: string) => void): HydrationOrder {
  const order = new HydrationOrder();
  let outside = 0;
  for (const { offset, length } of trace.ranges()) {
    if (offset >= geometry.size) outside++;
    else order.push(geometry.regionsTouching({ offset, length: Math.min(length, geometry.size - offset) }));
  }
  if (outside > 0) {
    const recorded = trace.size === undefined || trace.size === geometry.size ? "" : ` of ${formatSize(trace.size)}`;
    onWarning(
      `${outside} of ${trace.length} ranges of the trace "${trace.name}"${recorded} lie outside the image of ${formatSize(geometry.size)} and are left out`,
    );
  }
  if (trace.cutOff) onWarning(`Of the trace "${trace.name}" only the first ${MOST_RANGES} ranges count`);
  return order;
}
