/** `clone repair`: new metadata from damaged metadata, to a new file or, with a backup kept, in place. */
import { CloneError } from "../base/errors.ts";
import type { RegionRange } from "../base/geometry.ts";
import { MemoryDevice } from "../device/memory-device.ts";
import { type Finding, formatFinding } from "../metadata/check.ts";
import {
  type Assumption,
  type ComparedState,
  type PlannedRepair,
  planRepair,
  type RepairPlan,
  type ToldGeometry,
  writeRepaired,
} from "../metadata/repair.ts";
import { imageBytes } from "../metadata/repair-descriptor.ts";
import { Clone, type DeviceRequest } from "./clone.ts";
import type { RunningComparison } from "./compare-sides.ts";
import { equalRegions } from "./compare-unknown.ts";
import { PAGE } from "./hydrate-clone.ts";
import { isDestinationAsLeft } from "./left-destination.ts";
import { type OpenedMetadata, openMetadata } from "./open-metadata.ts";
import { type BlockRange, overwriteDevice, replaceFile, writeToNewFile } from "./repair-files.ts";
import { chooseTarget, refuseBackup, refuseSmallDevice, type TargetRequest } from "./repair-target.ts";
import { ofUnchangedSource } from "./unchanged-source.ts";

/** What to repair, and how. */
export interface RepairCloneRequest extends DeviceRequest, TargetRequest {
  /** The metadata, or the destination it stands beside. */
  name: string;
  /** Whether source and destination are read where the metadata does not tell. */
  compare?: boolean | undefined;
  assume?: Assumption | undefined;
  /** Of a clone whose superblock is lost. */
  geometry?: ToldGeometry | undefined;
}

/** What came of it. */
export interface RepairReport {
  /** Path of the damaged metadata. */
  metadata: string;
  plan: RepairPlan;
  /** Whether anything was written. */
  repaired: boolean;
  /** Where the new metadata is; null where nothing was written. */
  output: string | null;
  /** What is left of the old where it was replaced. */
  backup: string | null;
  /** Blocks of it that could not be read, and are zero in the backup. */
  unreadableBlocks: BlockRange[];
  /** Whether the metadata is a device, whose place no file can take. */
  isDevice: boolean;
}

type ImageContent = Pick<PlannedRepair, "geometry" | "blockCount" | "bits" | "descriptor">;

interface RepairContext {
  signal: AbortSignal;
  onWarning?: ((warning: string) => void) | undefined;
  onDetail?: ((line: string) => void) | undefined;
  onCompare?: ((running: RunningComparison) => void) | undefined;
}

/**
 * Repairs metadata. Where it cannot, nothing is written and the report says why.
 *
 * @throws {UsageError} for options that cannot work, and where something stands where a file is to be made
 * @throws {BusyError} where the clone is in use
 * @throws {CloneError} where the source has changed, or changes while it is compared
 * @throws {DeviceError} where something cannot be read or written
 * @throws the reason of `signal` when it aborts
 */
export async function repairClone(request: RepairCloneRequest, context: RepairContext): Promise<RepairReport> {
  const { name, inPlace = false, dryRun = false, assume, geometry } = request;
  await using opened = await openMetadata(name, inPlace && !dryRun ? "exclusive" : "quiescent");
  const { device } = opened;
  const target = await chooseTarget(device, request);
  const { signal } = context;
  const compare = request.compare
    ? async (state: ComparedState, unknown: Iterable<RegionRange>) => {
        if (target.kind === "in place") await refuseBackup(device, target.backup);
        return await compareWith(opened, state, unknown, { request, context });
      }
    : undefined;
  const plan = await planRepair(device, {
    signal,
    assume,
    geometry,
    compare,
    isDestinationAsLeft: (descriptor) =>
      isDestinationAsLeft(descriptor, { named: request.destination ?? opened.destination, metadata: device }),
  });
  const unwritten = {
    ...{ metadata: device.path, isDevice: device.kind === "block", plan },
    ...{ repaired: false, output: null, backup: null, unreadableBlocks: [] },
  };
  const isSound = plan.before.fatal.length + plan.before.warnings.length === 0;
  if (!plan.ok || (inPlace && isSound)) return unwritten;
  if (target.kind === "in place") {
    await refuseBackup(device, target.backup);
    refuseSmallDevice(device, plan);
  }
  if (dryRun) return unwritten;
  if (plan.assumed?.as === "hydrated") await flushDestination(opened, plan, { request, context });
  signal.throwIfAborted();
  if (target.kind === "new") {
    await writeToNewFile(device, plan, target.path);
    return { ...unwritten, repaired: true, output: target.path };
  }
  const { backup } = target;
  const unreadableBlocks =
    device.kind === "file"
      ? await replaceFile(device, plan, backup)
      : await overwriteDevice(device, plan, { backup, signal });
  return { ...unwritten, repaired: true, output: device.path, backup, unreadableBlocks };
}

/** Opens the devices as any command does, with metadata made of what is proved, and compares the rest. */
async function compareWith(
  found: OpenedMetadata,
  { geometry, blockCount, hydrated, descriptor }: ComparedState,
  unknown: Iterable<RegionRange>,
  { request, context }: { request: RepairCloneRequest; context: RepairContext },
): Promise<RegionRange[]> {
  const { signal, onCompare } = context;
  await using clone = await cloneOf(found, { geometry, blockCount, bits: hydrated, descriptor }, context);
  const destination = await clone.attachDestination(request, "read-only");
  const source = await clone.attachSource(request);
  const alignment = destination.file?.directAlignment ?? PAGE;
  const sides = { geometry, source: source.view, destination: destination.view, alignment };
  return await ofUnchangedSource(source, () => equalRegions(sides, [...unknown], { signal, onStart: onCompare }));
}

/** The bits are to outlive a power cut, so what they vouch for must too. Where it is not at hand that is the user's to see to. */
async function flushDestination(
  found: OpenedMetadata,
  plan: PlannedRepair,
  { request, context }: { request: RepairCloneRequest; context: RepairContext },
): Promise<void> {
  await using clone = await cloneOf(found, plan, context);
  const destination = await clone.attachDestination(request, "read-only").catch((error: unknown) => {
    if (!(error instanceof CloneError)) throw error;
    context.signal.throwIfAborted();
    context.onWarning?.(`The destination is not made durable (${error.message}): run sync before this is relied on`);
    return undefined;
  });
  await destination?.view.flush();
}

/** The clone as metadata that is still to be written would show it. */
async function cloneOf(found: OpenedMetadata, content: ImageContent, context: RepairContext): Promise<Clone> {
  const image = new MemoryDevice({
    size: imageBytes(content.blockCount, content.descriptor),
    name: found.device.name,
  });
  await writeRepaired(content, image);
  return await Clone.ofImage(image, found, context);
}

/** A report as `--json` prints it: ranges as half-open pairs, findings as `check --json` has them. */
export interface RepairJson {
  repaired: boolean;
  output: string | null;
  backup: string | null;
  unreadableBlocks: [number, number][];
  fatal: Finding[];
  warnings: Finding[];
  exact: string[];
  salvaged: string[];
  unknown: [number, number][];
  compared: [number, number][] | null;
  copiedAgain: [number, number][];
  assumed: [number, number][];
  assumedAs: Assumption | null;
  lost: string[];
  /** Why nothing was written; null where something was, or was not to be. */
  reason: string | null;
}

/** @see RepairJson */
export function repairJson({ plan, repaired, output, backup, unreadableBlocks }: RepairReport): RepairJson {
  const { before, exact, salvaged, unknown, compared, copiedAgain, assumed, lost } = plan;
  return {
    repaired,
    output,
    backup,
    unreadableBlocks: pairs(unreadableBlocks),
    fatal: before.fatal,
    warnings: before.warnings,
    exact,
    salvaged,
    unknown: pairs(unknown),
    compared: compared && pairs(compared),
    copiedAgain: pairs(copiedAgain),
    assumed: pairs(assumed?.regions ?? []),
    assumedAs: assumed?.as ?? null,
    lost,
    reason: plan.ok ? null : plan.reason,
  };
}

function pairs(ranges: readonly RegionRange[]): [number, number][] {
  return ranges.map(({ start, end }) => [start, end]);
}

/** The error that a refused plan is to a caller who wants one. */
export function refusal(metadata: string, plan: RepairPlan & { ok: false }): CloneError {
  const [finding] = plan.before.fatal;
  const found = finding === undefined ? "" : ` (${formatFinding(finding)})`;
  return new CloneError("damaged", `Cannot repair "${metadata}": ${plan.reason}${found}`, {
    ...(plan.hint === undefined ? {} : { hint: plan.hint }),
  });
}
