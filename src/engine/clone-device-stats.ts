/** What a served clone has done since it was opened. Counts; bytes where the name says so. */
export interface CloneDeviceStats {
  reads: number;
  readBytes: number;
  /** Of these, what came from the source. */
  sourceServedBytes: number;
  writes: number;
  writtenBytes: number;
  discards: number;
  discardedBytes: number;
  zeroes: number;
  zeroedBytes: number;
  /** Flushes that clients asked for. */
  flushes: number;
  /** Changes that had to be durable before their answer (FUA). */
  durableChanges: number;
  hints: number;
  /** Regions copied because a client wrote to a part of them. */
  demandCopies: number;
  /** Copies of that kind that failed. */
  demandCopyFailures: number;
  /** Unhydrated regions that clients have overwritten, zeroed or discarded whole: they were never copied. */
  overwrittenRegions: number;
  zeroedRegions: number;
  discardedRegions: number;
  /** Bytes of regions that were hydrated from what clients have read. */
  hydratedOnReadBytes: number;
  /** Times that this failed: the region is copied later. */
  writeBehindFailures: number;
  /** Times that a region was overwritten or discarded before its bytes came. */
  writeBehindCancelled: number;
  /** Bytes of regions that are being hydrated from a read at this moment. */
  writeBehindBytes: number;
  /** Bytes read from the source for clients, with what was read around what they asked for. */
  sourceReadBytes: number;
  /** Requests that were not made to wait any longer for the source. */
  timeouts: number;
  /** Requests that ended in an error. */
  failures: number;
}

/** Nothing done yet. */
export function emptyStats(): CloneDeviceStats {
  return {
    reads: 0,
    readBytes: 0,
    sourceServedBytes: 0,
    writes: 0,
    writtenBytes: 0,
    discards: 0,
    discardedBytes: 0,
    zeroes: 0,
    zeroedBytes: 0,
    flushes: 0,
    durableChanges: 0,
    hints: 0,
    demandCopies: 0,
    demandCopyFailures: 0,
    overwrittenRegions: 0,
    zeroedRegions: 0,
    discardedRegions: 0,
    hydratedOnReadBytes: 0,
    writeBehindFailures: 0,
    writeBehindCancelled: 0,
    writeBehindBytes: 0,
    sourceReadBytes: 0,
    timeouts: 0,
    failures: 0,
  };
}
