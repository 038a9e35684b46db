/**
 * The checker: reads all live metadata once, changes nothing, and says everything that is not as the format demands
 * (`clone-metadata(5)`, INVARIANTS). It shares no code with what writes metadata, and trusts nothing it reads: memory
 * is bounded by the number of managed blocks (some 6 bytes each), time by the blocks really there.
 *
 *     superblock ─► index block ─► bitmaps       counts ──┐
 *         │    └──► reference-count tree                  ├─► compared
 *         └───────► bitset tree ─► array blocks  references┘
 */
import { Geometry } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { BitsetChecker } from "./check-bitset.ts";
import { BlockReader, MAX_BLOCK_COUNT } from "./check-blocks.ts";
import { BlockReferences } from "./check-references.ts";
import { type CheckFacts, type CheckReport, type CheckVerdict, FindingList } from "./check-report.ts";
import { SpaceMapChecker } from "./check-space-map.ts";
import { checkSuperblock, type Superblock } from "./check-superblock.ts";
import { type Descriptor, DescriptorStore } from "./descriptor.ts";
import { isAsLeft } from "./settled-witness.ts";

export { type CheckFacts, type CheckReport, type CheckVerdict, type Finding, formatFinding } from "./check-report.ts";

interface Findings {
  fatal: FindingList;
  warnings: FindingList;
}

/**
 * Checks dm-clone metadata. Never writes; never throws for what it finds: unreadable blocks are findings too.
 *
 * @param device the whole metadata file or device, descriptor included
 * @throws the signal's reason once it is aborted
 */
export async function checkMetadata(
  device: BlockDevice,
  { signal }: { signal?: AbortSignal | undefined } = {},
): Promise<CheckReport> {
  const findings = { fatal: new FindingList(), warnings: new FindingList() };
  const reader = new BlockReader(device, signal);
  const superblock = await checkSuperblock(reader, device.size, findings);
  if (typeof superblock === "string") return conclude(findings, superblock);
  const facts = await checkStructures(reader, superblock, findings);
  const descriptor = await checkDescriptor(device, superblock, findings);
  const bitsRefuted = await compareWithDescriptor(device, facts, descriptor, findings);
  return { ...conclude(findings, null, facts), ...(bitsRefuted && { bitsRefuted }) };
}

async function checkStructures(
  reader: BlockReader,
  superblock: Superblock,
  findings: Findings,
): Promise<CheckFacts | undefined> {
  const { regions, regionSectors, targetSectors, blockCount } = superblock;
  const references = new BlockReferences(blockCount ?? Math.min(reader.blocksOnDevice, MAX_BLOCK_COUNT));
  // Without a believable size the space map's own extent is unknown; without a geometry, the bitset's.
  const spaceMap = blockCount === null ? null : new SpaceMapChecker(reader, references, superblock, findings);
  const bitset = regions === null ? null : new BitsetChecker(reader, references, regions, findings);
  await spaceMap?.read();
  if (bitset === null) references.complete = false;
  await bitset?.check(superblock.bitsetRoot);
  spaceMap?.compare();
  if (spaceMap === null || bitset === null || regions === null || blockCount === null) return undefined;

  let minimumBlocks: number | null = null;
  if (references.complete) {
    minimumBlocks = 2 * (bitset.arrayBlockCount + bitset.nodeCount + spaceMap.bitmapCount) + 4;
    if (blockCount < minimumBlocks) {
      const effect = "a commit may run out of space, and the kernel can crash when it does";
      findings.warnings.add(
        "superblock",
        0,
        `${blockCount} blocks are fewer than the ${minimumBlocks} needed: ${effect}`,
      );
    }
  }
  return {
    size: targetSectors * 512,
    regionSize: regionSectors * 512,
    regions,
    hydratedRegions: bitset.hydratedRegions,
    hydratedDigest: bitset.hydratedDigest,
    totalBlocks: blockCount,
    usedBlocks: spaceMap.usedBlocks,
    minimumBlocks,
  };
}

/** Everything works without a descriptor, but nothing where one may be and cannot be read. */
async function checkDescriptor(
  device: BlockDevice,
  superblock: Superblock,
  { fatal, warnings }: Findings,
): Promise<Descriptor | null> {
  const { regions, regionSectors, targetSectors, blockCount } = superblock;
  if (regions === null || blockCount === null || targetSectors * 512 > Number.MAX_SAFE_INTEGER) return null;
  const geometry = new Geometry({ size: targetSectors * 512, regionSize: regionSectors * 512 });
  const store = await DescriptorStore.open(device, { geometry, blockCount });
  const list = store.unreadable === null ? warnings : fatal;
  for (const warning of store.warnings) list.add("descriptor", null, warning);
  return store.read();
}

/**
 * Holds the bits against what the descriptor says the clone was left with. As long as nobody has committed since they must be
 * the same; whoever goes on with the clone, as the kernel, only adds to them.
 * @returns whether they are certainly wrong
 */
async function compareWithDescriptor(
  device: BlockDevice,
  facts: CheckFacts | undefined,
  descriptor: Descriptor | null,
  { fatal, warnings }: Findings,
): Promise<boolean> {
  const settled = descriptor?.destination.settled;
  if (facts == null || facts.hydratedRegions === null || settled == null) return false;
  const { hydratedRegions = 0, hydratedDigest } = settled;
  if (!(await isAsLeft(device, settled))) {
    if (facts.hydratedRegions >= hydratedRegions) return false;
    const numbers = `${facts.hydratedRegions} regions are hydrated, ${hydratedRegions} were when the clone was left`;
    warnings.add("superblock", 0, `${numbers}: it is an older one, or the clone was begun anew`);
    return false;
  }
  if (hydratedDigest === undefined || hydratedDigest === facts.hydratedDigest) return false;
  const cause = "an array block or a node of another clone, or of another time, stands in the place of the true one";
  fatal.add("bitset", null, `which regions are hydrated is not what the clone was left with: ${cause}`);
  return true;
}

function conclude({ fatal, warnings }: Findings, verdict: CheckVerdict | null, facts?: CheckFacts): CheckReport {
  const found = fatal.count > 0 ? "damaged" : warnings.count > 0 ? "warnings" : "clean";
  return {
    ok: fatal.count === 0,
    verdict: verdict ?? found,
    fatal: fatal.list(),
    warnings: warnings.list(),
    ...(facts && { facts }),
  };
}
