/**
 * How many bytes to ask a source for at once when each question costs a round trip: enough to keep the way to it full, and
 * hardly more, since whatever waits in front of it is waited for by everybody, a client too.
 *
 *     length = bandwidth x (1.25 x delay + 25 ms)     in pieces of about an eighth of it
 *
 *     delay      the round trip without a queue of our own making: the median time of requests in a probe
 *     bandwidth  the most that came in any of the last full rounds; a round is as long as a request takes, and full where
 *                there was as much on its way as is allowed
 *
 * So it is in BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016), whose states these
 * are. But what answers here is a server rather than a link: its times vary by more than queues do, so the median counts and
 * not the minimum, and 25 ms of work may always wait there, which nobody notices and which spares processors small requests.
 *
 *     startup ── eight times as much every other round, until no more comes of it ──► steady, or a queue shows ──► drain
 *     steady  ── after 2 s, then every 10 s, or where the bandwidth falls by half ──► drain
 *     drain   ── half as much, until no more than that is on its way ──► probe
 *     probe   ── a round of requests that find no queue: their times are the delay ──► steady
 *
 * The first request tells the delay until the first probe. Where it was answered much sooner than those that follow it (caches;
 * acknowledgements that are delayed only after a while) the others look like a queue, which is why that is probed at once.
 *
 * Where no more than so many requests can be under way, a window is cut into no more pieces than that: the rest would wait
 * for its turn, look like a queue, and keep the window small for good.
 *
 * The factor is above 1 so that the window grows by itself as long as more comes of it: W bytes that take a delay each give a
 * bandwidth of W / delay, hence the next window of 1.25 W.
 */
import type { Clock } from "../base/clock.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { FilterDevice } from "../device/filters/filter-device.ts";
import { ByteGate } from "./byte-gate.ts";
import type { CopyAllowance, ReadWindow } from "./region-copier.ts";

const KIB = 1024;
const MIB = 2 ** 20;

/** The window before anything is known, bytes. On a link of 1 Mbit/s it takes a second. */
const FIRST_LENGTH = 128 * KIB;
/** Bytes per request. The smallest takes 65 ms on a link of 1 Mbit/s; larger than the largest pays nowhere. */
const SMALLEST_PIECE = 8 * KIB;
const LARGEST_PIECE = 2 * MIB;
/** The window at most, and with what has come and is being written, bytes. */
const MOST_LENGTH = 16 * MIB;
const MOST_HELD = 24 * MIB;
const PIECES = 8;
/** Pieces in flight at least, or the way is empty from each end to the next beginning. */
const FEWEST_PIECES = 2;

const GAIN = 1.25;
/** Work that may wait at the source, ms. */
const SLACK_MS = 25;
const STARTUP_GROWTH = 8;
/** More than this must come of a window that many times as long, or the way is full. */
const STARTUP_GAIN = 1.25;
/** The part of the window that must be on its way for a round to be full. */
const FULL = 0.7;
/** Rounds whose best is the bandwidth; none is shorter than this, ms. */
const ROUNDS = 10;
const SHORTEST_ROUND_MS = 10;
/** But for startup, where nothing is kept of a round that was too short to tell: the pieces are small until it is over. */
const SHORTEST_STARTUP_ROUND_MS = 4;
const PROBE_EVERY_MS = 10_000;
/** The first one comes earlier, but not before a short copy is over: one request has told the delay until then. */
const PROBE_FIRST_MS = 2000;
/** Round trips between two probes at least: each costs half the bandwidth for about two. */
const PROBE_EVERY_DELAYS = 25;
/** After a fall of the bandwidth a probe comes early, though not at once again. */
const PROBE_SOON_MS = 1000;
const PROBE_SOON_DELAYS = 10;
const PROBE_SAMPLES = 4;

/** What it measures, and by what. */
export interface TransferWindowParts {
  clock: Clock;
  /** What the source reads best multiples of, bytes. Default 4096. */
  blockSize?: number;
  /** The most that is best asked for by one request, bytes. Default 2 MiB. */
  mostAtOnce?: number;
  /** The most requests that can be under way. Default: no bound. */
  requestsAtOnce?: number;
}

/** A request under way. */
interface Sent {
  readonly atMs: number;
  /** The round in which it was sent. */
  readonly round: number;
  readonly probes: boolean;
}

/** The window of one source. All that is asked of it must go through `watch()`. */
export class TransferWindow implements CopyAllowance, ReadWindow {
  readonly #clock: Clock;
  readonly #smallestPiece: number;
  readonly #largestPiece: number;
  readonly #mostPieces: number;
  #state: "startup" | "drain" | "probe" | "steady" = "startup";
  /** But for drain and probe, which halve it. Bytes. */
  #length = FIRST_LENGTH;
  /** Of full rounds, the youngest last; bytes per ms. */
  readonly #bandwidths: number[] = [];
  #delayMs: number | undefined;
  /** Steady: less than half as much has come as in the best round. */
  #wasLow = false;
  /** Startup: no more has come than in the round before. */
  #stalled = false;
  #probedAt = -Infinity;
  #isProbed = false;
  #samples: number[] = [];

  /** On their way: requests and bytes of all. */
  #requests = 0;
  #inFlight = 0;
  #answeredAt = -Infinity;
  #round = 0;
  #roundBeganAt = 0;
  #roundLength = FIRST_LENGTH;
  #came = 0;
  /** Bytes on their way times ms. */
  #area = 0;
  #areaAt = 0;
  /** The shortest time of a request from the last probe on, and in this one, ms. */
  #leastMs = Infinity;
  #leastProbeMs = Infinity;

  readonly #gate: ByteGate;

  constructor(parts: TransferWindowParts) {
    const { clock, blockSize = 4096, mostAtOnce = LARGEST_PIECE, requestsAtOnce = Infinity } = parts;
    this.#clock = clock;
    this.#mostPieces = Math.max(1, requestsAtOnce - 1); // one goes beyond the window
    this.#gate = new ByteGate(() => this.length, { mostRequests: requestsAtOnce });
    this.#largestPiece = Math.max(4096, powerOfTwo(Math.min(LARGEST_PIECE, mostAtOnce)));
    this.#smallestPiece = Math.min(this.#largestPiece, Math.max(SMALLEST_PIECE, powerOfTwo(blockSize)));
  }

  /** Bytes that may be on their way at once. */
  get length(): number {
    return this.#state === "drain" || this.#state === "probe" ? this.#probeLength : this.#length;
  }

  /** Bytes per second of late, at best; undefined as long as that is not known. */
  get bytesPerSecond(): number | undefined {
    return this.#bandwidths.length === 0 ? undefined : Math.max(...this.#bandwidths) * 1000;
  }

  /** The time of a request that finds no queue, ms; undefined as long as that is not known. */
  get delayMs(): number | undefined {
    return this.#delayMs;
  }

  get pieceLength(): number {
    const fewEnough = 2 ** Math.ceil(Math.log2(this.#length / this.#mostPieces));
    const wanted = Math.max(powerOfTwo(this.#length / PIECES), fewEnough);
    return Math.min(this.#largestPiece, Math.max(this.#smallestPiece, wanted));
  }

  /** Pieces on their way, and as many that are being written. */
  get depth(): number {
    const piece = this.pieceLength;
    return Math.max(FEWEST_PIECES, Math.min(Math.ceil((2 * this.#length) / piece), Math.floor(MOST_HELD / piece)));
  }

  get shareLength(): number {
    return Infinity;
  }

  /** Resolves when so many more bytes may be asked for; first come, first served. */
  enter(bytes: number): Promise<void> {
    return this.#gate.enter(bytes);
  }

  leave(bytes: number): void {
    this.#gate.leave(bytes);
  }

  /** A view of the source whose reads are measured. */
  watch(source: BlockDevice): BlockDevice {
    return new WatchedDevice(source, this);
  }

  /** A request is sent. For `watch()`. */
  sent(bytes: number): Sent {
    const now = this.#clock.now();
    this.#addArea(now);
    if (this.#requests === 0 && now - this.#answeredAt > SHORTEST_ROUND_MS) this.#beginRound(now); // a pause tells nothing
    this.#requests++;
    this.#inFlight += bytes;
    return { atMs: now, round: this.#round, probes: this.#state === "probe" };
  }

  /** A request has been answered; `bytes` that came, where it was not answered by an error. For `watch()`. */
  answered({ atMs, round, probes }: Sent, bytes: number, { failed }: { failed: boolean }): void {
    const now = this.#clock.now();
    this.#addArea(now);
    this.#answeredAt = now;
    this.#requests--;
    this.#inFlight -= bytes;
    if (!failed) {
      const ms = now - atMs;
      this.#came += bytes;
      this.#leastMs = Math.min(this.#leastMs, ms);
      if (probes && this.#state === "probe") {
        // What it took to come is no delay, but the best may be far too little, for want of a window: then half of it is guessed.
        this.#samples.push(Math.max(ms / 2, ms - bytes / this.#best));
        this.#leastProbeMs = Math.min(this.#leastProbeMs, ms);
      }
      if (round === this.#round && now - this.#roundBeganAt >= this.#shortestRoundMs) this.#endRound(now, ms);
    }
    if (this.#state === "drain" && this.#inFlight <= this.length) this.#state = "probe";
    this.#gate.admit();
  }

  /** Half as much, and no more than the shortest time asks for: what was too long would be found to be right else. */
  get #probeLength(): number {
    return Math.max(this.pieceLength, Math.min(this.#length / 2, GAIN * this.#best * this.#leastMs));
  }

  #addArea(now: number): void {
    this.#area += this.#inFlight * (now - this.#areaAt);
    this.#areaAt = now;
  }

  get #shortestRoundMs(): number {
    return this.#state === "startup" ? SHORTEST_STARTUP_ROUND_MS : SHORTEST_ROUND_MS;
  }

  #beginRound(now: number): void {
    this.#round++;
    this.#roundBeganAt = now;
    this.#roundLength = this.length;
    this.#came = 0;
    this.#area = 0;
    this.#areaAt = now;
  }

  /** `requestMs`: the time of the request that ends it, the first that was sent in it. */
  #endRound(now: number, requestMs: number): void {
    const ms = now - this.#roundBeganAt;
    const bandwidth = this.#came / ms;
    const isFull = this.#area / ms >= FULL * this.#roundLength;
    if (this.#state === "startup") this.#grow(now, bandwidth, isFull, requestMs);
    else if (this.#state === "steady") this.#adapt(now, bandwidth, isFull);
    else {
      if (bandwidth > this.#best) this.#note(bandwidth);
      if (this.#state === "probe") this.#endProbe(now);
    }
    this.#beginRound(now);
  }

  #grow(now: number, bandwidth: number, isFull: boolean, requestMs: number): void {
    const best = this.#best;
    if (this.#delayMs === undefined) {
      this.#delayMs = requestMs; // the first ever: it found nothing before it, and says nothing about what came behind it
      if (isFull) this.#note(bandwidth);
      return;
    }
    if (!isFull) {
      // Small pieces may keep everybody too busy to fill the window; what came nevertheless asks for no less.
      if (bandwidth <= best) return;
      this.#note(bandwidth);
      const most = Math.min(MOST_LENGTH, STARTUP_GROWTH * this.#length);
      this.#length = Math.max(this.#length, Math.min(most, this.#target));
      return;
    }
    this.#note(bandwidth);
    const queues = requestMs > 1.5 * this.#delayMs + SLACK_MS;
    const isMost = this.#length >= MOST_LENGTH;
    // Of the first window nothing is known that it could be compared with.
    const isFirst = this.#length === FIRST_LENGTH;
    if (!isMost && !queues && (isFirst || bandwidth >= STARTUP_GAIN * best)) {
      this.#length = Math.min(MOST_LENGTH, STARTUP_GROWTH * this.#length);
      this.#stalled = false;
      return;
    }
    // In the first round after it has grown comes what was asked for before.
    const waits = !isMost && !queues && !this.#stalled;
    this.#stalled = true;
    if (waits) return;
    this.#length = this.#target;
    this.#state = queues && !isMost ? "drain" : "steady";
    this.#probedAt = now - PROBE_EVERY_MS + PROBE_FIRST_MS;
  }

  #endProbe(now: number): void {
    if (this.#samples.length < PROBE_SAMPLES) return;
    this.#samples.sort((a, b) => a - b);
    const first = this.#delayMs as number;
    this.#delayMs = this.#samples[Math.floor(this.#samples.length / 2)] as number;
    this.#samples = [];
    // Startup may have left a queue that the first probe did not see the end of, but not found none where there was one.
    this.#leastMs = this.#isProbed ? this.#leastProbeMs : Math.min(this.#leastMs, this.#leastProbeMs);
    this.#leastProbeMs = Infinity;
    this.#probedAt = now;
    // Where what looked like a queue was the delay, nothing is known yet of how much the way holds.
    const goesOn = !this.#isProbed && this.#delayMs > 2 * first + SLACK_MS;
    this.#isProbed = true;
    this.#stalled = false;
    this.#state = goesOn ? "startup" : "steady";
    this.#length = this.#target;
  }

  #adapt(now: number, bandwidth: number, isFull: boolean): void {
    // What clients ask for now and then says nothing about what could come.
    if (!isFull && bandwidth < this.#best) return;
    const delayMs = this.#delayMs as number;
    const isLow = bandwidth < this.#best / 2;
    this.#note(bandwidth);
    const fell = isLow && this.#wasLow;
    this.#wasLow = isLow && !fell;
    if (fell) this.#bandwidths.splice(0, this.#bandwidths.length - 2); // what it was before would ask for far too much
    this.#length = this.#target;
    const everyMs = fell
      ? Math.max(PROBE_SOON_MS, PROBE_SOON_DELAYS * delayMs)
      : Math.max(PROBE_EVERY_MS, PROBE_EVERY_DELAYS * delayMs);
    if (now - this.#probedAt >= everyMs) this.#state = "drain";
  }

  #note(bandwidth: number): void {
    this.#bandwidths.push(bandwidth);
    if (this.#bandwidths.length > ROUNDS) this.#bandwidths.shift();
  }

  /** Bytes per ms. */
  get #best(): number {
    return Math.max(0, ...this.#bandwidths);
  }

  get #target(): number {
    const wanted = this.#best * (GAIN * (this.#delayMs as number) + SLACK_MS);
    return Math.max(FEWEST_PIECES * this.#smallestPiece, Math.min(MOST_LENGTH, (wanted * PIECES) / (PIECES - 1)));
  }
}

class WatchedDevice extends FilterDevice {
  readonly #window: TransferWindow;

  constructor(inner: BlockDevice, window: TransferWindow) {
    super(inner);
    this.#window = window;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    const sent = this.#window.sent(buffer.length);
    let failed = true;
    try {
      await super.read(offset, buffer);
      failed = false;
    } finally {
      this.#window.answered(sent, buffer.length, { failed });
    }
  }
}

/** The largest that is not larger. */
function powerOfTwo(value: number): number {
  return 2 ** Math.floor(Math.log2(value));
}
