// What Prometheus is told, read back line by line as its text format is defined.
import { describe, expect, test } from "vitest";
import { type MetricsSnapshot, renderMetrics } from "../../../src/control/metrics.ts";

const SNAPSHOT: MetricsSnapshot = {
  version: "1.2.3",
  status: {
    state: "hydrating",
    size: 2 ** 44 + 512,
    regionSize: 65536,
    regions: 2 ** 28 + 1,
    hydratedRegions: 5,
    hydratingRegions: 2,
    unreadableRegions: 1,
    hydratedBytes: 5 * 65536,
    metadata: { usedBlocks: 6, totalBlocks: 266 },
    hydration: { enabled: true, rate: 1000, threshold: 16, batchSize: 8, bytesPerSecond: 990, etaSeconds: 60 },
  },
  bytes: { copied: 2 ** 40, zeroed: 0 },
  events: { commits: 3 },
  nbd: {
    connections: 2,
    connectionsTotal: 9,
    requests: { read: 7, write: 4 },
    failures: { read: 1 },
    bytes: { read: 4096, write: 0 },
  },
  foregroundLatency: { "0.5": 0.0001, "0.99": 0.002 },
};

/** The samples of a text: `name{label="value"}` to number. Fails on any line that the format does not have. */
function samplesOf(text: string): Map<string, number> {
  const samples = new Map<string, number>();
  let described = "";
  for (const line of text.split("\n")) {
    if (line === "") continue;
    const [, keyword, name = ""] = /^# (HELP|TYPE) ([a-z_]+) \S/.exec(line) ?? [];
    if (keyword !== undefined) {
      described = name;
      continue;
    }
    const match = /^([a-z_]+)(\{[a-z]+="[^"\\]*"\})? (\S+)$/.exec(line);
    expect(match, line).not.toBeNull();
    expect(match?.[1]).toBe(described);
    samples.set(
      `${match?.[1]}${match?.[2] ?? ""}`,
      match?.[3] === "+Inf" ? Number.POSITIVE_INFINITY : Number(match?.[3]),
    );
  }
  return samples;
}

describe("renderMetrics()", () => {
  test("says every number of the snapshot under its name and label", async () => {
    const { contentType, text } = await renderMetrics(SNAPSHOT);
    expect(contentType).toMatch(/^text\/plain; version=0\.0\.4/);
    const samples = samplesOf(text);
    expect(Object.fromEntries(samples)).toMatchObject({
      'clone_info{version="1.2.3"}': 1,
      'clone_state{state="hydrating"}': 1,
      'clone_state{state="failed"}': 0,
      clone_size_bytes: 2 ** 44 + 512,
      clone_regions: 2 ** 28 + 1,
      clone_regions_hydrated: 5,
      clone_regions_hydrating: 2,
      clone_regions_unreadable: 1,
      clone_hydration_rate_limit_bytes_per_second: 1000,
      clone_hydration_threshold: 16,
      clone_hydration_eta_seconds: 60,
      'clone_bytes_total{kind="copied"}': 2 ** 40,
      'clone_bytes_total{kind="zeroed"}': 0,
      'clone_events_total{kind="commits"}': 3,
      clone_nbd_connections: 2,
      clone_nbd_connections_total: 9,
      'clone_nbd_requests_total{command="read"}': 7,
      'clone_nbd_failures_total{command="read"}': 1,
      'clone_nbd_bytes_total{direction="write"}': 0,
      'clone_foreground_latency_seconds{quantile="0.99"}': 0.002,
    });
    expect(samples.get("process_resident_memory_bytes")).toBeGreaterThan(2 ** 20);
    expect(samples.get("process_cpu_seconds_total")).toBeGreaterThan(0);
  });

  test("gives counters and only counters names that end in _total", async () => {
    const { text } = await renderMetrics(SNAPSHOT);
    const types = [...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)];
    expect(types.length).toBeGreaterThan(20);
    for (const [, name, type] of types) expect(name?.endsWith("_total") ? "counter" : "gauge", name).toBe(type);
  });

  test("leaves out what there is none of, and calls no limit infinite", async () => {
    const { nbd: _, events: __, foregroundLatency: ___, ...rest } = SNAPSHOT;
    const hydration = { ...rest.status.hydration, rate: null, threshold: null, etaSeconds: null, enabled: false };
    const { text } = await renderMetrics({ ...rest, status: { ...rest.status, hydration } });
    const samples = samplesOf(text);
    expect([...samples.keys()].filter((name) => /nbd|latency|_eta_|threshold|events/.test(name))).toEqual([]);
    expect(samples.get("clone_hydration_rate_limit_bytes_per_second")).toBe(Number.POSITIVE_INFINITY);
    expect(samples.get("clone_hydration_enabled")).toBe(0);
  });

  test("starts anew at each scrape: nothing is counted twice", async () => {
    const first = samplesOf((await renderMetrics(SNAPSHOT)).text).get('clone_bytes_total{kind="copied"}');
    const second = samplesOf((await renderMetrics(SNAPSHOT)).text).get('clone_bytes_total{kind="copied"}');
    expect(second).toBe(first);
  });
});
