/**
 * Makes hydrated regions survive power loss, in the one order that is safe (dm-clone's `commit_metadata`):
 *
 *     1. freeze     the regions marked so far; those marked from here on belong to the next commit
 *     2. guard      what was copied may be vouched for (the source is still the one that was pinned)
 *     3. flush      the destination: every write of a frozen region completed before 1, so this makes it durable
 *     4. commit     exactly the frozen bits: blocks, flush, superblock, flush
 *
 * Proof: a bit reaches the disk only in step 4; its region's writes had completed before step 1 and are covered by the
 * flush of step 3, which completed before step 4 began. So no bit outlives its data, wherever the power fails. The guard
 * comes after the freeze because it can speak only for what was read before it looked.
 *
 *     ready ──commit(), flush()──► committing ──► ready
 *       ▲                           │      │
 *       │                           │      └── any failure ──► failed (for good: nothing more is written)
 *       │       the destination lost what was written to it
 *       │                           │                           ▲
 *       └── taken back, and again ──┴── with clients' changes ──┘
 *
 * A failed flush is final because the kernel reports a lost write once and then forgets it: trying again would succeed
 * and vouch for data that is gone.
 *
 * A destination that was away (a connection broke, its server was started anew) is another matter: it says that it lost what
 * was not flushed, and can be used again. What was copied can be copied again. So every bit that is not on disk is taken
 * back, and every hydration under way is tainted, in one step with the news; nobody ever sees the one without the other.
 * What clients have changed is nowhere else: if any of their changes may be among what was lost, the clone is `failed`.
 * Whoever is about to change something, or has read something, looks whether the destination is in doubt, and has that settled
 * first: so a change that comes after a loss is not among what was lost, and nothing stale is taken for data.
 *
 * And a copy whose connection was lost may still be carried out by the server, long after: a flush knows nothing of it. Copying
 * the same again is no harm, but a client's change would be undone. So changes wait where something strays (`calm()`).
 *
 * A change is noted before it is sent, and forgotten by a flush whose freeze came after the change had ended, its bit set: a
 * flush that covers the data alone would forget it while its bit can still be taken back.
 *
 * A `flush()` needs step 3 even where nothing is to be committed, and a commit where something is: a write is durable
 * only together with the bit that says where it lies. Both take their turn here, since a flush may have to wait for the
 * bits that the commit before it has frozen.
 */
import assert from "node:assert";
import { CloneError, DeviceError, LostWritesError } from "../base/errors.ts";
import type { ByteRange } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { RemoteDevice } from "../device/remote-device.ts";
import type { CloneMetadata } from "../metadata/clone-metadata.ts";
import type { RegionMap } from "./region-map.ts";

/** What a commit needs. */
export interface CommitParts {
  metadata: CloneMetadata;
  destination: BlockDevice;
  /** Whose hydrations under way do not count where the destination has lost what was written to it. */
  regions?: Pick<RegionMap, "taint">;
  /** Where the destination is not of this machine: whether it has something to tell. */
  link?: Pick<RemoteDevice, "losses" | "isAway" | "strayIn"> | undefined;
  /**
   * Asked after the regions are frozen, before anything vouches for them; throws where it may not, for instance because
   * the source has changed while they were copied.
   */
  guard?: () => Promise<void>;
  /** Asked before each flush of the destination, to commit or not; throws where what was written to it is lost anyway. */
  refuseLost?: () => Promise<void>;
  /** Told after each commit that made regions durable. */
  onCommitted?: () => void;
  /** Told once, when the clone turns `failed`. */
  onFailed?: (error: Error) => void;
}

/** How often a commit starts again because the destination has lost what was written to it, before it gives up. */
const MOST_ATTEMPTS = 5;

/** Serialises commits; all who ask before one has frozen its regions share it. */
export class CommitPipeline {
  readonly #parts: Omit<CommitParts, "metadata">;
  /** Undefined once the clone stands alone: then only the destination is flushed. */
  #metadata: CloneMetadata | undefined;
  /** The commit that has not frozen its regions yet. */
  #next: Promise<void> | undefined;
  /** Whether that one flushes the destination in any case. */
  #nextFlushes = false;
  /** Settles, never rejects, when the last commit asked for has ended. */
  #last: Promise<unknown> = Promise.resolve();
  #failure: Error | undefined;
  #losses = 0;
  /** The destination's own count of them, as far as what follows from them is done. */
  #settled: number | undefined;
  #changesUnderWay = 0;
  /** Whether clients' changes have begun since the last freeze, or were under way then. */
  #changed = false;
  /** Whether changes had ended before the last freeze that no flush has covered yet. */
  #changedBefore = false;

  constructor({ metadata, ...parts }: CommitParts) {
    this.#metadata = metadata;
    this.#parts = parts;
    this.#settled = parts.link?.losses;
  }

  /** Why the clone is `failed`, or undefined while it is not. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** Whether every region's bit is on disk: the truth about completion, which the bits in memory are not. */
  get complete(): boolean {
    const metadata = this.#metadata;
    return metadata === undefined || metadata.committedCount === metadata.regionCount;
  }

  /** How often the destination is known to have lost what was not flushed. Bits were taken back each time. */
  get losses(): number {
    return this.#losses;
  }

  /**
   * Resolves when every region marked hydrated before the call is durably so, or has been taken back because the destination
   * lost it. Does nothing where nothing changed.
   * @throws what the guard, the destination's flush or the metadata threw; every later call throws it again, unless `failure`
   * is undefined: then the destination cannot be reached for now, nothing was vouched for, and the next call tries again
   */
  commit(): Promise<void> {
    if (this.#next === undefined) {
      const next = this.#last.then(() => this.#commit());
      this.#next = next;
      this.#last = next.catch(() => undefined);
    }
    return this.#next;
  }

  /**
   * Resolves when every write and every hydration that had ended before the call survives power loss: flushes the
   * destination even where there is nothing to commit. Shared like a commit.
   * @throws as `commit()`
   */
  flush(): Promise<void> {
    this.#nextFlushes = true;
    return this.commit();
  }

  /** A client's change has been made, within this turn of the event loop. */
  noteChange(): void {
    this.#changed = true;
  }

  /**
   * Makes a client's change, from before anything of it reaches the destination until its bits are set. Where the destination
   * says that the change itself is lost, the clone is `failed`: it may even be carried out later, over newer data.
   * @throws what `make` throws
   */
  async change(make: () => Promise<void>): Promise<void> {
    this.#changed = true;
    this.#changesUnderWay++;
    try {
      await make();
    } catch (error) {
      if (error instanceof LostWritesError) this.lose(error);
      throw error;
    } finally {
      this.#changesUnderWay--;
    }
  }

  /**
   * Whether the destination has lost something that has not been taken back yet: what was read from it may be older than it
   * should be. Asks nobody.
   */
  get inDoubt(): boolean {
    return this.#parts.link !== undefined && this.#parts.link.losses !== this.#settled;
  }

  /** Whether that is so, or may turn out to be so when the destination is back. */
  get isUnsteady(): boolean {
    return this.inDoubt || this.#parts.link?.isAway === true;
  }

  /**
   * Waits for the destination to be back, and ends the doubt, as a flush does: resolves when what it has lost is taken back.
   * `losses` tells then whether there was anything. Resolves to why the destination cannot be reached, where it cannot.
   */
  async settle(): Promise<DeviceError | undefined> {
    if (this.#failure === undefined) {
      return await this.flush().then(
        () => undefined,
        (error) => (error instanceof DeviceError && error.away ? error : undefined), // what follows from it is done
      );
    }
    // Nobody flushes any more. What clients wrote is lost with the rest, and was given up when it failed.
    const { name } = this.#parts.destination;
    const error = new LostWritesError(`Cannot trust what was written to "${name}": its connection was lost meanwhile`);
    if (this.inDoubt) this.#loseAll(error);
    return undefined;
  }

  /**
   * Undefined where a change of a range would not be undone by something that was lost there, and may still be carried out; else
   * resolves when that may be over, and it is worth another look.
   */
  strayIn({ offset, length }: ByteRange): Promise<void> | undefined {
    return this.#parts.link?.strayIn?.(offset, length);
  }

  /** Undefined where a range may be changed; else resolves when any doubt has been settled, and nothing strays there. */
  calm(range: ByteRange): Promise<void> | undefined {
    const over = this.strayIn(range);
    return this.isUnsteady || over !== undefined ? this.#calm(range, over) : undefined;
  }

  async #calm(range: ByteRange, first: Promise<void> | undefined): Promise<void> {
    if (this.isUnsteady) await this.settle();
    for (let over = first ?? this.strayIn(range); over !== undefined; over = this.strayIn(range)) {
      await over;
      if (this.isUnsteady) await this.settle();
      if (this.#failure !== undefined) return;
    }
  }

  /**
   * The destination has lost what was written to it since it was last flushed, as some write of it says: takes back every bit
   * that is not on disk, and taints what is under way. With clients' changes among it the clone is `failed`. Whether there is
   * more to it the next flush tells.
   */
  lose(error: DeviceError): void {
    this.#losses++;
    this.#metadata?.rollback();
    this.#parts.regions?.taint();
    if (!this.#changed && !this.#changedBefore) return;
    this.fail(
      new LostWritesError(`Cannot go on: what clients wrote since the last flush may be lost. ${error.message}`, {
        errno: error.errno,
        cause: error,
        hint: "What was flushed is there. Serving the clone anew goes on from it.",
      }),
    );
  }

  /** The same, where the destination has nothing more to say about it. */
  #loseAll(error: DeviceError): void {
    this.#settled = this.#parts.link?.losses;
    this.lose(error);
  }

  /** Turns the clone `failed` for a reason of the caller's: something that must be true is not, so nothing is vouched for. */
  fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#parts.onFailed?.(error);
  }

  /** Turns it `failed` for an error that is no operating error but a broken invariant: then nothing is vouched for. */
  failUnlessOperating(error: unknown): void {
    if (!(error instanceof CloneError)) this.fail(error as Error);
  }

  /** @throws why the clone is `failed`, if it is */
  check(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Lets go of the metadata, all of which is on disk: from here on there is only the destination to be flushed. */
  release(): void {
    assert(this.complete && this.#metadata?.changed !== true, "regions are not committed yet");
    this.#metadata = undefined;
  }

  async #commit(): Promise<void> {
    const flushes = this.#nextFlushes;
    this.#nextFlushes = false;
    this.#next = undefined;
    this.check();
    try {
      for (let attempt = 1; ; attempt++) {
        // After a loss the destination is flushed in any case: it may have something more to say.
        const lost = await this.#attempt({ flushes: flushes || attempt > 1 });
        if (lost === undefined) return;
        if (attempt === MOST_ATTEMPTS) throw new Unreachable(lost);
      }
    } catch (error) {
      if (error instanceof Unreachable && this.#failure === undefined) throw error.reason;
      const reason = error instanceof Unreachable ? error.reason : error;
      this.fail(reason instanceof Error ? reason : new CloneError("failed", `Cannot commit: ${reason}`));
      throw this.#failure;
    }
  }

  /** Commits what there is; resolves to what the destination said where it had lost some of it. */
  async #attempt({ flushes }: { flushes: boolean }): Promise<LostWritesError | undefined> {
    const metadata = this.#metadata?.changed === true ? this.#metadata : undefined;
    if (metadata === undefined && !flushes) return undefined;
    const losses = this.#losses;
    this.#freeze(metadata);
    if (metadata !== undefined) {
      await this.#parts.guard?.();
      // A failure that was found meanwhile is one of what the frozen regions hold.
      this.check();
    }
    await this.#parts.refuseLost?.();
    const lost = await this.#flushDestination();
    this.check();
    // From here to the first write of metadata nothing waits, so what is frozen is what was flushed.
    if (this.#losses !== losses) {
      return lost ?? new LostWritesError(`Cannot flush "${this.#parts.destination.name}": its connection is lost`);
    }
    this.#changedBefore = false;
    if (metadata === undefined) return undefined;
    await metadata.commit();
    this.#parts.onCommitted?.();
    return undefined;
  }

  /** What the next flush covers, bits and clients' changes alike: all that has ended by now. */
  #freeze(metadata: CloneMetadata | undefined): void {
    metadata?.preCommit();
    this.#changedBefore ||= this.#changed;
    this.#changed = this.#changesUnderWay > 0;
  }

  /** Resolves to what the destination says where it has lost something; then all that follows from it is done. */
  async #flushDestination(): Promise<LostWritesError | undefined> {
    try {
      await this.#parts.destination.flush();
      return undefined;
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      // A disk of this machine may say ETIMEDOUT too: what it has lost it does not tell twice.
      const isAway = error.away && this.#parts.link !== undefined;
      if (!(error instanceof LostWritesError || isAway)) throw error;
      if (error instanceof LostWritesError) {
        this.#loseAll(error);
        return error;
      }
      // It has been called for as long as anybody wants to wait.
      this.lose(error);
      throw new Unreachable(error);
    }
  }
}

/** The destination cannot be flushed for now; what was not flushed before counts as lost, and is taken back. */
class Unreachable extends Error {
  readonly reason: DeviceError;

  constructor(reason: DeviceError) {
    super(reason.message);
    this.reason = reason;
  }
}
