/**
 * What a running clone tells Prometheus, from a snapshot that is taken when it is asked: nothing is counted here. Loading
 * prom-client takes 25 ms and 11 MiB, so this module is for `await import()` at the first scrape.
 */
import { Counter, Gauge, Registry } from "prom-client";

/** Counts or amounts by a name that becomes a label. */
type Named = Readonly<Record<string, number>>;

/** A clone at one moment. Counters are since the process opened the clone. */
export interface MetricsSnapshot {
  version: string;
  /** As `clone status --json` has it. */
  status: {
    state: string;
    size: number;
    regionSize: number;
    regions: number;
    hydratedRegions: number;
    hydratingRegions: number;
    unreadableRegions: number;
    hydratedBytes: number;
    metadata: { usedBlocks: number; totalBlocks: number };
    hydration: {
      enabled: boolean;
      rate: number | null;
      threshold: number | null;
      batchSize: number | null;
      bytesPerSecond: number;
      etaSeconds: number | null;
    };
  };
  /** Bytes by what became of them: copied, reflinked, zeroed, skipped, and what else the clone counts. */
  bytes: Named;
  /** Events by their names, as commits, demandCopies, timeouts. */
  events?: Named;
  /** Where clients are served. */
  nbd?: {
    connections: number;
    connectionsTotal: number;
    /** Requests answered and requests refused or failed, by command (`read`, `write`, `flush`, …). */
    requests: Named;
    failures: Named;
    /** Bytes of payload by direction: `read`, `write`. */
    bytes: Named;
  };
  /** Latency of clients' requests lately, seconds by quantile (`"0.5"`, `"0.99"`). */
  foregroundLatency?: Named;
}

/** What is measured of a snapshot: a value, one by label, or nothing to tell. */
type Measure = (snapshot: MetricsSnapshot) => number | Named | null | undefined;

interface Metric {
  type: "gauge" | "counter";
  name: string;
  help: string;
  /** The label of values that come by name. */
  label?: string;
  measure: Measure;
}

const STATES = ["failed", "finalized", "hydrated", "paused", "hydrating", "serving", "idle"];

const METRICS: readonly Metric[] = [
  gauge("clone_info", "The program, always 1", ({ version }) => ({ [version]: 1 }), "version"),
  gauge("clone_state", "1 for the state that the clone is in", stateFlags, "state"),
  gauge("clone_size_bytes", "Size of the clone", ({ status }) => status.size),
  gauge("clone_region_size_bytes", "Size of a region", ({ status }) => status.regionSize),
  gauge("clone_regions", "Regions of the clone", ({ status }) => status.regions),
  gauge("clone_regions_hydrated", "Regions that are hydrated", ({ status }) => status.hydratedRegions),
  gauge("clone_regions_hydrating", "Regions that are being hydrated", ({ status }) => status.hydratingRegions),
  gauge("clone_regions_unreadable", "Regions known to be unreadable", ({ status }) => status.unreadableRegions),
  gauge("clone_hydrated_bytes", "Bytes of the hydrated regions", ({ status }) => status.hydratedBytes),
  gauge("clone_metadata_blocks", "Blocks of the metadata", ({ status }) => status.metadata.totalBlocks),
  gauge("clone_metadata_blocks_used", "Blocks of the metadata in use", ({ status }) => status.metadata.usedBlocks),
  gauge("clone_hydration_enabled", "1 while regions are hydrated in the background", ({ status }) =>
    status.hydration.enabled ? 1 : 0,
  ),
  gauge(
    "clone_hydration_rate_limit_bytes_per_second",
    "Bytes per second at most, +Inf where there is no limit",
    ({ status }) => status.hydration.rate ?? Number.POSITIVE_INFINITY,
  ),
  gauge("clone_hydration_threshold", "Most regions being copied at once", ({ status }) => status.hydration.threshold),
  gauge("clone_hydration_batch_size", "Most neighbouring regions per copy", ({ status }) => status.hydration.batchSize),
  gauge(
    "clone_hydration_bytes_per_second",
    "Bytes per second hydrated of late",
    ({ status }) => status.hydration.bytesPerSecond,
  ),
  gauge(
    "clone_hydration_eta_seconds",
    "Seconds until all is hydrated at the pace of late; absent while nothing moves",
    ({ status }) => status.hydration.etaSeconds,
  ),
  counter("clone_bytes_total", "Bytes by what became of them", ({ bytes }) => bytes, "kind"),
  counter("clone_events_total", "What has happened, by kind", ({ events }) => events, "kind"),
  gauge("clone_nbd_connections", "Clients connected", ({ nbd }) => nbd?.connections),
  counter("clone_nbd_connections_total", "Clients that have connected", ({ nbd }) => nbd?.connectionsTotal),
  counter("clone_nbd_requests_total", "Requests of clients answered", ({ nbd }) => nbd?.requests, "command"),
  counter("clone_nbd_failures_total", "Requests of clients failed or refused", ({ nbd }) => nbd?.failures, "command"),
  counter("clone_nbd_bytes_total", "Bytes of payload moved for clients", ({ nbd }) => nbd?.bytes, "direction"),
  gauge(
    "clone_foreground_latency_seconds",
    "Latency of clients' requests of late",
    ({ foregroundLatency }) => foregroundLatency,
    "quantile",
  ),
  gauge("process_resident_memory_bytes", "Resident memory size in bytes.", () => process.memoryUsage.rss()),
  counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6;
  }),
  gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", () =>
    Math.round(performance.timeOrigin / 1000),
  ),
];

/** The snapshot in Prometheus's text format. */
export async function renderMetrics(snapshot: MetricsSnapshot): Promise<{ contentType: string; text: string }> {
  const registry = new Registry();
  for (const metric of METRICS) {
    const values = labelled(metric.measure(snapshot));
    if (values.length === 0) continue; // what is not there is not 0
    const { type, name, help, label } = metric;
    const settings = { name, help, registers: [registry], labelNames: label === undefined ? [] : [label] };
    const made = type === "gauge" ? new Gauge(settings) : new Counter(settings);
    for (const [of, value] of values) {
      const labels = label === undefined ? {} : { [label]: of };
      if (made instanceof Gauge) made.set(labels, value);
      else made.inc(labels, value);
    }
  }
  return { contentType: registry.contentType, text: await registry.metrics() };
}

function labelled(measured: ReturnType<Measure>): [string, number][] {
  if (measured === null || measured === undefined) return [];
  return typeof measured === "number" ? [["", measured]] : Object.entries(measured);
}

function stateFlags({ status }: MetricsSnapshot): Named {
  return Object.fromEntries(STATES.map((state) => [state, state === status.state ? 1 : 0]));
}

function gauge(name: string, help: string, measure: Measure, label?: string): Metric {
  return { type: "gauge", name, help, measure, ...(label === undefined ? {} : { label }) };
}

function counter(name: string, help: string, measure: Measure, label?: string): Metric {
  return { type: "counter", name, help, measure, ...(label === undefined ? {} : { label }) };
}
