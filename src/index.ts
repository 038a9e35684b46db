/** The public API: what `clone` the program is made of, for programs. */
export {
  BusyError,
  CloneError,
  type CloneErrorCode,
  DeviceError,
  MetadataError,
  UsageError,
} from "./base/errors.ts";
export { type ByteRange, Geometry, type Region, type RegionRange } from "./base/geometry.ts";
export {
  type AttachedDestination,
  type AttachedSource,
  Clone,
  type DeviceRequest,
  type OpenRequest,
} from "./clone/clone.ts";
export { type CloneStatus, dmStatusLine, readStatus, type StatusReport } from "./clone/clone-status.ts";
export type { RunningComparison } from "./clone/compare-sides.ts";
export { type CopyStart, startCopy } from "./clone/copy-clone.ts";
export { type CreatedClone, type CreateRequest, createClone } from "./clone/create-clone.ts";
export { type Deletion, deleteClone } from "./clone/delete-clone.ts";
export { type FinalizeReport, type FinalizeRequest, finalizeClone, linearTable } from "./clone/finalize-clone.ts";
export { type HydrateReport, type HydrateRequest, hydrateClone, type RunningHydration } from "./clone/hydrate-clone.ts";
export {
  type RepairCloneRequest,
  type RepairReport,
  repairClone,
} from "./clone/repair-clone.ts";
export { type RestoredMetadata, type RestoreRequest, restoreMetadata } from "./clone/restore-metadata.ts";
export type { Trace } from "./clone/trace-codec.ts";
export { readTrace } from "./clone/trace-file.ts";
export { type VerifyReport, verifyClone } from "./clone/verify-clone.ts";
export type { BlockDevice, Extent, ZeroOptions } from "./device/block-device.ts";
export { FileDevice, type FileDeviceOptions } from "./device/file-device.ts";
export { type CheckReport, checkMetadata, type Finding, formatFinding } from "./metadata/check.ts";
export { CloneMetadata } from "./metadata/clone-metadata.ts";
export { type Descriptor, DescriptorStore } from "./metadata/descriptor.ts";
export { type DumpContent, dumpMetadata } from "./metadata/dump.ts";
export {
  type PlannedRepair,
  planRepair,
  type RepairPlan,
  type RepairRequest,
  writeRepaired,
} from "./metadata/repair.ts";
export { type RestoredDump, readDump } from "./metadata/restore-dump.ts";
