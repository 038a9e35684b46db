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
 *                                      └── any failure ──► failed (for good: nothing more is written)
 *
 * A failed flush is final because the kernel reports a lost write once and then forgets it: trying again would succeed
 * and vouch for data that is gone.
 *
 * A `flush()` needs step 3 even where nothing is to be committed, and a commit where something is: a write is durable
 * only together with the bit that says where it lies. Both take their turn here, since a flush may have to wait for the
 * bits that the commit before it has frozen.
 */
import assert from "node:assert";
import { CloneError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { CloneMetadata } from "../metadata/clone-metadata.ts";

/** What a commit needs. */
export interface CommitParts {
  metadata: CloneMetadata;
  destination: BlockDevice;
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

  constructor({ metadata, ...parts }: CommitParts) {
    this.#metadata = metadata;
    this.#parts = parts;
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

  /**
   * Resolves when every region marked hydrated before the call is durably so. Does nothing where nothing changed.
   * @throws what the guard, the destination's flush or the metadata threw; every later call throws it again.
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
    const changed = this.#metadata?.changed === true;
    if (!changed && !flushes) return;
    try {
      if (changed) await this.#commitChanges(this.#metadata as CloneMetadata);
      else await this.#flushDestination();
    } catch (error) {
      this.fail(error instanceof Error ? error : new CloneError("failed", `Cannot commit: ${error}`));
      throw this.#failure;
    }
    if (changed) this.#parts.onCommitted?.();
  }

  async #commitChanges(metadata: CloneMetadata): Promise<void> {
    metadata.preCommit();
    await this.#parts.guard?.();
    // A failure that was found meanwhile is one of what the frozen regions hold.
    this.check();
    await this.#flushDestination();
    this.check();
    await metadata.commit();
  }

  async #flushDestination(): Promise<void> {
    const { destination, refuseLost } = this.#parts;
    await refuseLost?.();
    await destination.flush();
  }
}
