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
 *     ready ──commit()──► committing ──► ready
 *                             └── any failure ──► failed (for good: nothing more is written)
 *
 * A failed flush is final because the kernel reports a lost write once and then forgets it: trying again would succeed
 * and vouch for data that is gone.
 */
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
}

/** Serialises commits; all who ask before one has frozen its regions share it. */
export class CommitPipeline {
  readonly #parts: CommitParts;
  /** The commit that has not frozen its regions yet. */
  #next: Promise<void> | undefined;
  /** Settles, never rejects, when the last commit asked for has ended. */
  #last: Promise<unknown> = Promise.resolve();
  #failure: Error | undefined;

  constructor(parts: CommitParts) {
    this.#parts = parts;
  }

  /** Why the clone is `failed`, or undefined while it is not. */
  get failure(): Error | undefined {
    return this.#failure;
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

  async #commit(): Promise<void> {
    this.#next = undefined;
    if (this.#failure !== undefined) throw this.#failure;
    const { metadata, destination, guard } = this.#parts;
    if (!metadata.changed) return;
    try {
      metadata.preCommit();
      await guard?.();
      await destination.flush();
      await metadata.commit();
    } catch (error) {
      this.#failure = error as Error;
      throw error;
    }
  }
}
