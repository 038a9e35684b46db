/** What a process that has a clone open tells of it, in rows of a name and a value, for `status` and `tune`. */
import { formatDuration, formatSize } from "../base/units.ts";
import type { CloneStatus } from "../clone/clone-status.ts";

/** A name of at most 11 characters, and what it is. */
export type Row = [name: string, value: string];

/** What `tune` can change, as it is now. */
export function settingRows({ state, hydration, server }: CloneStatus): Row[] {
  const { rate, minRate, threshold, batchSize, hydrateOnRead } = hydration;
  const rows: Row[] = [
    ["paused", state === "paused" ? "yes" : "no"],
    ["rate", rate === null ? "unlimited" : formatRate(rate)],
    ["threshold", `${threshold ?? "not known"}`],
    ["batch size", `${batchSize ?? "not known"}`],
  ];
  if (server === null) return rows;
  if (minRate !== null) rows.push(["min rate", formatRate(minRate)]);
  if (hydrateOnRead !== null) rows.push(["on read", hydrateOnRead]);
  return rows;
}

/** How a hydration gets on, and what bounds it: each short enough for a narrow terminal. */
export function paceRows({ state, hydration, hydratingRegions }: CloneStatus): Row[] {
  const { bytesPerSecond, etaSeconds, rate, threshold, batchSize } = hydration;
  const pace = [
    ...(state === "hydrating"
      ? [`${formatRate(bytesPerSecond)}, ETA ${etaSeconds === null ? "-" : formatDuration(etaSeconds)}`]
      : []),
    ...(hydratingRegions > 0 ? [`${hydratingRegions} in flight`] : []),
  ];
  const limits = [
    rate === null ? "no rate limit" : `at most ${formatRate(rate)}`,
    `threshold ${threshold ?? "-"}`,
    `batch size ${batchSize ?? "-"}`,
  ];
  return [...(pace.length > 0 ? ([["hydration", pace.join(", ")]] as Row[]) : []), ["limits", limits.join(", ")]];
}

/** Where clients are served, and how many there are. */
export function serverRow({ uri, connections }: NonNullable<CloneStatus["server"]>): Row {
  return ["server", `${uri}, ${connections} ${connections === 1 ? "connection" : "connections"}`];
}

/** A row as it is printed. */
export function formatRow([name, value]: Row, dim: (text: string) => string): string {
  return `${dim(name.padEnd(12))}${value}`;
}

/** Bytes per second, for people. */
export function formatRate(bytesPerSecond: number): string {
  return `${formatSize(bytesPerSecond)}/s`;
}
