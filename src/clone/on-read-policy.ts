/**
 * Whether what clients read from the source is kept at the destination.
 *
 *     on      every region that is read, completed where it was read in part
 *     off     none
 *     auto    source remote, or on such a file system      as `on`: a round trip costs more than a write
 *             local, but slow (a disk that seeks) regions that were read whole
 *             local and fast, or in memory        none: reading it again costs less than writing it
 */

import type { BlockDevice } from "../device/block-device.ts";
import { fileSystemKind } from "../device/file-system.ts";
import type { CloneDevice, HydrateOnRead } from "../engine/clone-device.ts";
import type { OpenedSource } from "./open-devices.ts";

/** What the user asks for. */
export type HydrateOnReadPolicy = "auto" | "on" | "off";

/** A source whose reads take longer is slow, ms. */
const SLOW_MS = 4;
/** Where it is tried, as parts of its length, and how much is read there, bytes. */
const PROBES = [0.25, 0.5, 0.75];
const PROBE_LENGTH = 65536;

/** Keeps a device's `hydrateOnRead` as the policy and the source demand. */
export class OnReadPolicy {
  readonly #device: CloneDevice;
  readonly #source: OpenedSource | undefined;
  /** What `auto` comes to; `never` until it is known. */
  #automatic: HydrateOnRead = "never";
  #policy: HydrateOnReadPolicy;

  constructor(device: CloneDevice, source: OpenedSource | undefined, policy: HydrateOnReadPolicy) {
    this.#device = device;
    this.#source = source;
    this.#policy = policy;
    this.#apply();
    void this.#lookAtSource();
  }

  get policy(): HydrateOnReadPolicy {
    return this.#policy;
  }

  set policy(policy: HydrateOnReadPolicy) {
    this.#policy = policy;
    this.#apply();
  }

  #apply(): void {
    const fixed = { on: "always", off: "never", auto: undefined } as const;
    this.#device.hydrateOnRead = fixed[this.#policy] ?? this.#automatic;
  }

  /** Nobody waits for it: the source may take its time, or hang. */
  async #lookAtSource(): Promise<void> {
    const source = this.#source;
    if (source === undefined) return;
    try {
      this.#automatic = (await isRemote(source)) ? "always" : await localPolicy(source.device);
    } catch {
      return; // what is wrong with it is told to whoever needs it
    }
    this.#apply();
  }
}

async function isRemote({ file, remote }: OpenedSource): Promise<boolean> {
  if (remote !== undefined) return true;
  return file?.kind === "file" && (await fileSystemKind(file.fd)) === "remote";
}

async function localPolicy(source: BlockDevice): Promise<HydrateOnRead> {
  const buffer = new Uint8Array(Math.min(PROBE_LENGTH, source.size));
  const timesMs: number[] = [];
  for (const part of PROBES) {
    const startedAt = performance.now();
    await source.read(Math.floor((source.size - buffer.length) * part), buffer);
    timesMs.push(performance.now() - startedAt);
  }
  const medianMs = timesMs.sort((a, b) => a - b)[Math.floor(timesMs.length / 2)] ?? 0;
  return medianMs > SLOW_MS ? "whole" : "never";
}
