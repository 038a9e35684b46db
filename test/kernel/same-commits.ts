/** The commits of the kernel, made again by this program on a fresh format: the images must be the same, byte for byte. */
import { readFile, stat } from "node:fs/promises";
import { expect } from "vitest";
import type { RegionRange } from "../../src/base/geometry.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { imageOf } from "../support/image.ts";
import { kernelCommits } from "../support/kernel-commits.ts";
import type { RelayedClone } from "./relayed-clone.ts";

/** Metadata of ours beside that of the kernel. */
export class CommitsAlike {
  readonly #clone: RelayedClone;
  readonly #device: MemoryDevice;

  private constructor(clone: RelayedClone, device: MemoryDevice) {
    this.#clone = clone;
    this.#device = device;
  }

  /** Formats, as the kernel formats what it finds zeroed. */
  static async format(clone: RelayedClone): Promise<CommitsAlike> {
    const { size } = await stat(clone.path("metadata"));
    const device = new MemoryDevice({ name: "metadata of ours", size });
    await CloneMetadata.create(device, { geometry: clone.expected.geometry, blockCount: size / 4096 });
    return new CommitsAlike(clone, device);
  }

  /** Opens the metadata, which is what the kernel did before these commits, and makes them. */
  async repeat(commits: readonly RegionRange[][]): Promise<void> {
    await using metadata = await CloneMetadata.open(this.#device);
    for (const ranges of commits) {
      for (const range of ranges) metadata.markHydrated(range);
      metadata.preCommit();
      await metadata.commit();
    }
  }

  /** Makes the commits that can be read from what the kernel has left, where allocation has not gone round. */
  async repeatThoseFound(): Promise<void> {
    await this.repeat(kernelCommits(await readFile(this.#clone.path("metadata"))));
  }

  async compare(): Promise<void> {
    const kernel = await readFile(this.#clone.path("metadata"));
    const ours = await imageOf(this.#device);
    const block = Array.from({ length: ours.length / 4096 }, (_, index) => index * 4096).find(
      (at) => !ours.subarray(at, at + 4096).equals(kernel.subarray(at, at + 4096)),
    );
    expect(block === undefined ? undefined : `block ${block / 4096} differs`).toBeUndefined();
    expect(kernel.length).toBe(ours.length);
  }
}
