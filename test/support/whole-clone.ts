/** Whole clones made, hydrated and changed in this process, for tests of what comes after: starting the program costs more. */
import { open } from "node:fs/promises";
import { join } from "node:path";
import { Clone } from "../../src/clone/clone.ts";
import { type CreateRequest, createClone } from "../../src/clone/create-clone.ts";
import { type FinalizeReport, type FinalizeRequest, finalizeClone } from "../../src/clone/finalize-clone.ts";
import { type HydrateReport, type HydrateRequest, hydrateClone } from "../../src/clone/hydrate-clone.ts";
import type { Descriptor } from "../../src/metadata/descriptor.ts";
import { randomFile } from "./files.ts";

/** Bytes per region of every clone made here. */
export const REGION_SIZE = 65536;
/** Bytes of the source that `clonedTo` makes. */
export const IMAGE_SIZE = 16 * REGION_SIZE;

/** `clone hydrate` as it is without options. */
export const HYDRATE: HydrateRequest = {
  rate: null,
  threshold: null,
  batchSize: null,
  retry: 0,
  maxErrors: 1000,
  onError: "skip",
  limit: null,
  verify: false,
  extents: true,
};

/** `clone finalize` as it is without options. */
export const FINALIZE: FinalizeRequest = {
  verify: false,
  keepMetadata: false,
  acceptUnreadable: false,
  withoutSource: false,
};

/** A signal that never aborts. */
export const NEVER = new AbortController().signal;

/** `clone create SOURCE DEST`. Resolves to the path of the metadata. */
export async function create(
  source: string,
  destination: string,
  options: Partial<CreateRequest> = {},
): Promise<string> {
  const request = { source, destination, regionSize: REGION_SIZE, force: false, ...options };
  return (await createClone(request)).metadata;
}

/** `clone hydrate NAME`, with what differs from `HYDRATE`. */
export async function hydrate(name: string, options: Partial<HydrateRequest> = {}): Promise<HydrateReport> {
  await using clone = await Clone.open({ name, access: "exclusive" });
  return await hydrateClone(clone, { ...HYDRATE, ...options }, { signal: NEVER });
}

/** `clone finalize NAME`, with what differs from `FINALIZE`. */
export async function finalize(name: string, options: Partial<FinalizeRequest> = {}): Promise<FinalizeReport> {
  await using clone = await Clone.open({ name, access: "exclusive" });
  return await finalizeClone(clone, { ...FINALIZE, ...options }, { signal: NEVER });
}

/** The descriptor of a clone. */
export async function descriptorOf(name: string): Promise<Descriptor> {
  await using clone = await Clone.open({ name, access: "any" });
  if (clone.descriptor === null) throw new Error(`${name} has no descriptor`);
  return clone.descriptor;
}

/** Writes another descriptor: what `change` makes of the present one. */
export async function changeDescriptor(
  name: string,
  change: (descriptor: Descriptor) => Partial<Descriptor>,
): Promise<void> {
  await using clone = await Clone.open({ name, access: "exclusive" });
  if (clone.descriptor === null) throw new Error(`${name} has no descriptor`);
  await clone.updateDescriptor(change(clone.descriptor));
}

/** Makes disk.img and a clone of it to copy.img, `hydrated` bytes of which are copied. */
export async function clonedTo(
  cwd: string,
  hydrated: number,
): Promise<{ bytes: Buffer; copy: string; source: string }> {
  const [source, copy] = [join(cwd, "disk.img"), join(cwd, "copy.img")];
  const bytes = await randomFile(source, IMAGE_SIZE);
  await create(source, copy);
  if (hydrated > 0) await hydrate(copy, { limit: hydrated >= IMAGE_SIZE ? null : hydrated });
  return { bytes, copy, source };
}

/** Writes into a file or device without truncating it. */
export async function overwrite(path: string, offset: number, bytes: Buffer): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.write(bytes, 0, bytes.length, offset);
    await file.sync();
  } finally {
    await file.close();
  }
}
