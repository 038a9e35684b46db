/** What goes wrong where two that touch the same region do not know of each other. */
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import { bytesAt, makeClone, type TestClone } from "../../support/clone-device.ts";
import { formattedStore } from "../../support/hydration.ts";
import { imageOf } from "../../support/image.ts";
import { noise } from "../../support/layout.ts";
import { Power, PowerLossDevice, seededRandom } from "../../support/power-loss-device.ts";
import { whenIdle } from "../../support/virtual-clock.ts";

const REGION = 4096;
const SIZE = 8 * REGION;
/** What the client writes; no noise looks like it. */
const WRITTEN = Buffer.alloc(REGION, 0x77);

/** A device whose first read, or write, of a region waits until it is let go. */
class Held extends FilterDevice {
  readonly #kind: "read" | "write";
  readonly #region: number;
  #waits: (() => void) | undefined;
  #used = false;

  constructor(inner: ConstructorParameters<typeof FilterDevice>[0], kind: "read" | "write", region: number) {
    super(inner);
    this.#kind = kind;
    this.#region = region;
  }

  letGo(): void {
    this.#waits?.();
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#pass("read", offset);
    await super.read(offset, buffer);
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    await this.#pass("write", offset);
    await super.write(offset, data, options);
  }

  override tryRead(): boolean {
    return false;
  }

  override tryWrite(): boolean {
    return false;
  }

  override mapRange(): undefined {
    return undefined;
  }

  async #pass(kind: "read" | "write", offset: number): Promise<void> {
    if (this.#used || kind !== this.#kind || Math.floor(offset / REGION) !== this.#region) return;
    this.#used = true;
    await new Promise<void>((resolve) => {
      this.#waits = resolve;
    });
  }
}

/** Lets everybody go on who can. */
async function pass(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await whenIdle();
}

/** What a region holds, now and after a power cut that takes everything unflushed. */
async function lookAt(
  clone: TestClone,
  { disk, store }: { disk: PowerLossDevice; store: PowerLossDevice },
  region: number,
): Promise<string[]> {
  const wrong: string[] = [];
  const now = await bytesAt(clone.device, region * REGION, REGION);
  if (!now.equals(WRITTEN)) wrong.push("a write that was answered and flushed is gone");
  const options = { size: SIZE, regionSize: REGION, source: clone.source };
  for (const random of [() => 0, () => 0.999_999, seededRandom(1)]) {
    const reopened = await makeClone({
      ...options,
      destination: disk.afterPowerLoss(random),
      store: store.afterPowerLoss(random),
    });
    const after = await bytesAt(reopened.device, region * REGION, REGION);
    if (!after.equals(WRITTEN)) wrong.push("a write that was flushed is gone after a power cut");
  }
  return wrong;
}

async function stage(hold: { source?: "read"; destination?: "write" }, region: number) {
  const power = new Power();
  const disk = new PowerLossDevice(noise(SIZE, 2), { name: "destination", power });
  const store = new PowerLossDevice(await imageOf(await formattedStore(SIZE, REGION)), { name: "metadata", power });
  const memory = new MemoryDevice({ name: "source", size: SIZE, content: noise(SIZE, 1) });
  const source = new Held(memory, "read", hold.source === undefined ? -1 : region);
  const destination = new Held(disk, "write", hold.destination === undefined ? -1 : region);
  return { disk, store, source, destination };
}

/** 14.2, 1: the region is discarded while a copy of it is on its way to the destination, and written, and flushed. */
export async function discardDuringACopy(): Promise<string[]> {
  const { disk, store, source, destination } = await stage({ destination: "write" }, 3);
  const clone = await makeClone({ size: SIZE, regionSize: REGION, source, destination, store });
  const hydration = clone.regions.begin({ start: 3, end: 4 });
  const copied = clone.copier
    .copy(clone.geometry.bytesOf(hydration), new AbortController().signal)
    .then(() => clone.regions.complete(hydration));
  await pass();
  let discarded = false;
  const discarding = clone.device.discard(3 * REGION, REGION).then(() => {
    discarded = true;
  });
  await pass();
  // Whoever waits for the copy, as it must, gets it.
  if (!discarded) destination.letGo();
  await discarding;
  await clone.device.write(3 * REGION, WRITTEN);
  await clone.device.flush();
  destination.letGo();
  await copied;
  await pass();
  return await lookAt(clone, { disk, store }, 3);
}

/** A client writes the region whose bytes another is just reading from the source, to be hydrated by that. */
export async function lateWriteBehind(): Promise<string[]> {
  const { disk, store, source, destination } = await stage({ source: "read" }, 3);
  const clone = await makeClone({
    size: SIZE,
    regionSize: REGION,
    source,
    destination,
    store,
    hydrateOnRead: "always",
  });
  const read = clone.device.read(3 * REGION, new Uint8Array(REGION));
  await pass();
  let written = false;
  const writing = clone.device.write(3 * REGION, WRITTEN).then(() => {
    written = true;
  });
  await pass();
  if (!written) source.letGo();
  await writing;
  await clone.device.flush();
  source.letGo();
  await read;
  await clone.device.drain();
  await pass();
  return await lookAt(clone, { disk, store }, 3);
}
