/**
 * How long things took, in buckets that grow with the time: eight to each doubling, so that a quantile is off by at most
 * an eighth, from 1 us to an hour in one array. Recording allocates nothing.
 *
 *     us      0 … 7      8 … 15     16, 18 … 30     32, 36 … 60     …
 *     bucket  0 … 7      8 … 15     16     … 23     24     … 31     …
 */

const PER_DOUBLING = 8;
/** 2^32 us is a little more than an hour; what took longer counts as that long. */
const LONGEST_US = 2 ** 32 - 1;
const BUCKETS = 30 * PER_DOUBLING;

/** A distribution of times. */
export class LatencyHistogram {
  readonly #counts = new Uint32Array(BUCKETS);
  #count = 0;
  #records = 0;

  /** Of how many things the time was recorded. */
  get count(): number {
    return this.#count;
  }

  /** How often something was recorded, whatever its weight. */
  get records(): number {
    return this.#records;
  }

  /** Records a time, ms, for `weight` things that took as long. */
  record(ms: number, weight = 1): void {
    const bucket = bucketOf(ms);
    this.#counts[bucket] = (this.#counts[bucket] as number) + weight;
    this.#count += weight;
    this.#records++;
  }

  /** The time that a share `q` (0 … 1) of them did not exceed, ms, rounded up to the end of a bucket; 0 where there are none. */
  quantile(q: number): number {
    let left = Math.max(1, Math.ceil(this.#count * q));
    for (let bucket = 0; bucket < BUCKETS && this.#count > 0; bucket++) {
      left -= this.#counts[bucket] as number;
      if (left <= 0) return endOf(bucket);
    }
    return 0;
  }

  /** Takes over what another has recorded, which keeps it. */
  add(other: LatencyHistogram): void {
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      this.#counts[bucket] = (this.#counts[bucket] as number) + (other.#counts[bucket] as number);
    }
    this.#count += other.#count;
    this.#records += other.#records;
  }

  clear(): void {
    this.#counts.fill(0);
    this.#count = 0;
    this.#records = 0;
  }
}

function bucketOf(ms: number): number {
  const us = Math.min(LONGEST_US, Math.max(0, Math.floor(ms * 1000)));
  if (us < PER_DOUBLING) return us;
  const doubling = 31 - Math.clz32(us); // 3 … 31
  return (doubling - 2) * PER_DOUBLING + Math.floor(us / 2 ** (doubling - 3)) - PER_DOUBLING;
}

/** Where a bucket ends, ms. */
function endOf(bucket: number): number {
  if (bucket < PER_DOUBLING) return (bucket + 1) / 1000;
  const doubling = Math.floor(bucket / PER_DOUBLING) + 2;
  return ((PER_DOUBLING + (bucket % PER_DOUBLING) + 1) * 2 ** (doubling - 3)) / 1000;
}
