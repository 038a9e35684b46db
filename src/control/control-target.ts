/** What a control socket steers: a clone that this process has open, while it is served or hydrated. */

/** Changes to a running hydration; what is absent stays. */
export interface Tuning {
  /** Bytes per second at most; null is unlimited. */
  rate?: number | null;
  /** Bytes per second that foreground I/O never takes away from the background; null is the default. */
  minRate?: number | null;
  /** Most regions being copied at once; null is automatic. */
  threshold?: number | null;
  /** Most neighbouring regions per copy; null is automatic. */
  batchSize?: number | null;
  /** Whether hydration in the background rests. */
  paused?: boolean;
  hydrateOnRead?: "auto" | "on" | "off";
}

/** A running clone as its control socket sees it. What is thrown is told to the caller, in its own words. */
export interface ControlTarget {
  /** What `clone status --json` prints. Changes nothing, commits nothing. */
  status(): object;
  /** The regions, for those who draw them or list them: half-open ranges, ascending, of at most `most`. */
  regions(most: number): { hydrated: [number, number][]; unreadable: [number, number][]; complete: boolean };
  /**
   * Changes what is given, at once, and keeps it for the next process.
   * @throws {UsageError} for what this process cannot change
   * @throws {DeviceError} where it is changed, and cannot be kept
   */
  tune(changes: Tuning): Promise<void>;
  /** Makes durable what is hydrated so far. @throws {CloneError} */
  commit(): Promise<void>;
  /** Makes the destination stand alone. @throws {CloneError} where it cannot be yet */
  finalize(request: { keepMetadata: boolean; acceptUnreadable: boolean; withoutSource: boolean }): Promise<object>;
  /** Ends the process as SIGTERM would; resolves before it does. */
  stop(): Promise<void>;
  /** The metrics in Prometheus's text format. */
  metrics(): Promise<{ contentType: string; text: string }>;
}
