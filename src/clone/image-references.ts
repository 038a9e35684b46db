/**
 * Which other files an image refers to: the backing file of an overlay, the file that holds its data, the parts of a VMDK. They
 * are found here, and not left to qemu, since whoever wrote the image has chosen them: `/etc/shadow` too, or an address in an
 * inner network. Only headers are read, and nothing of them is believed to be in bounds.
 *
 *     qcow, qcow2   backing_file_offset and size; the extensions "backing file format" and "external data file name"
 *     qed           backing_filename_offset and size, where features say so
 *     vmdk          parentFileNameHint and the extents in the descriptor, which is text
 *     others        none that qemu would open
 */
import { CloneError, DeviceError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";

/** A file that an image is read together with, as the image names it. */
export interface ImageReference {
  role: "backing file" | "data file" | "extent";
  name: string;
  /** Of a backing file, where the image says which it has. */
  format?: string | undefined;
}

/** Most bytes of a header that are looked at: the largest cluster of qcow2. */
const MOST_HEADER_BYTES = 2 ** 21;
/** Bytes looked at first. */
export const FIRST_HEADER_BYTES = 65536;
const LONGEST_NAME = 1023;
/** What qemu reads of a VMDK's descriptor, bytes. */
const VMDK_DESCRIPTOR_BYTES = 2 ** 20;
const MOST_EXTENTS = 4096;

/** docs/interop/qcow2.txt. */
const QCOW2_DATA_FILE_BIT = 4n;
const QCOW2_BACKING_FORMAT = 0xe2792aca;
const QCOW2_DATA_FILE_NAME = 0x44415441;
/** docs/interop/qed_spec.txt. */
const QED_BACKING_BIT = 1n;
const QED_RAW_BACKING_BIT = 4n;

/**
 * The files that an image refers to.
 * @throws {CloneError} where its header makes no sense, or it is encrypted
 * @throws {DeviceError} where it cannot be read
 */
export async function readReferences(image: BlockDevice, format: string): Promise<ImageReference[]> {
  const refuse = (why: string): never => {
    throw new CloneError("failed", `Cannot open "${image.name}" as ${format}: ${why}`);
  };
  const read = async (offset: number, length: number): Promise<Buffer> => {
    if (offset > image.size) refuse("a part of its header lies behind its end");
    const bytes = Buffer.alloc(Math.min(length, image.size - offset));
    await image.read(offset, bytes);
    return bytes;
  };
  const head = await read(0, FIRST_HEADER_BYTES);
  if (head.length < 512) return refuse("it is too short");
  switch (format) {
    case "qcow":
    case "qcow2":
      return await qcowReferences(head, read, refuse);
    case "qed":
      return qedReferences(head, refuse);
    case "vmdk":
      return await vmdkReferences(head, read, refuse);
    default:
      return [];
  }
}

type Read = (offset: number, length: number) => Promise<Buffer>;
type Refuse = (why: string) => never;

async function qcowReferences(head: Buffer, read: Read, refuse: Refuse): Promise<ImageReference[]> {
  const version = head.readUInt32BE(4);
  if (head.toString("latin1", 0, 4) !== "QFI\xfb" || version < 1 || version > 3) refuse("it has no such header");
  if (head.readUInt32BE(version === 1 ? 36 : 32) !== 0) refuse("it is encrypted");
  const nameOffset = head.readBigUInt64BE(8);
  const nameLength = head.readUInt32BE(16);
  if (version === 1) return backing(head, nameOffset, nameLength, refuse);
  const clusterBits = head.readUInt32BE(20);
  if (clusterBits < 9 || clusterBits > 21) refuse(`its clusters have 2^${clusterBits} bytes`);
  const clusterBytes = Math.min(2 ** clusterBits, MOST_HEADER_BYTES);
  const cluster = clusterBytes > head.length ? await read(0, clusterBytes) : head.subarray(0, clusterBytes);
  const end = nameOffset === 0n ? cluster.length : Number(nameOffset);
  const extensions = extensionsOf(cluster.subarray(0, end), version === 2 ? 72 : head.readUInt32BE(100), refuse);
  const found = backing(cluster, nameOffset, nameLength, refuse, extensions.get(QCOW2_BACKING_FORMAT));
  if (version === 2 || (head.readBigUInt64BE(72) / QCOW2_DATA_FILE_BIT) % 2n === 0n) return found;
  const name = extensions.get(QCOW2_DATA_FILE_NAME) ?? refuse("its data are in another file, which it does not name");
  return [...found, { role: "data file", name }];
}

/** The header's extensions by type, as text; of each the last, as qemu has it. */
function extensionsOf(header: Buffer, start: number, refuse: Refuse): Map<number, string> {
  const extensions = new Map<number, string>();
  for (let offset = start; offset + 8 <= header.length; ) {
    const type = header.readUInt32BE(offset);
    const length = header.readUInt32BE(offset + 4);
    if (type === 0) break;
    if (offset + 8 + length > header.length) refuse("an extension of its header is too long");
    extensions.set(type, header.toString("utf8", offset + 8, offset + 8 + length));
    offset += 8 + Math.ceil(length / 8) * 8;
  }
  return extensions;
}

function qedReferences(head: Buffer, refuse: Refuse): ImageReference[] {
  if (head.toString("latin1", 0, 4) !== "QED\0") refuse("it has no such header");
  const features = head.readBigUInt64LE(16);
  if (features % 2n !== QED_BACKING_BIT) return [];
  const format = (features / QED_RAW_BACKING_BIT) % 2n === 1n ? "raw" : undefined;
  return backing(head, BigInt(head.readUInt32LE(56)), head.readUInt32LE(60), refuse, format);
}

/** The backing file whose name stands in a header; none where it has no length. */
function backing(
  header: Buffer,
  offset: bigint,
  length: number,
  refuse: Refuse,
  format?: string | undefined,
): ImageReference[] {
  if (offset === 0n || length === 0) return [];
  const isInside = offset + BigInt(length) <= BigInt(header.length);
  if (length > LONGEST_NAME || !isInside) refuse("the name of its backing file is out of bounds");
  const start = Number(offset);
  return [{ role: "backing file", name: header.toString("utf8", start, start + length), format }];
}

/** `vmdk` of a file that is all descriptor, or has one within. */
async function vmdkReferences(head: Buffer, read: Read, refuse: Refuse): Promise<ImageReference[]> {
  const magic = head.toString("latin1", 0, 4);
  if (magic === "KDMV") {
    const capacity = head.readBigUInt64LE(12);
    const offset = head.readBigUInt64LE(28) * 512n;
    if (offset > BigInt(Number.MAX_SAFE_INTEGER)) refuse("its descriptor is out of bounds");
    const text = offset === 0n ? "" : textOf(await read(Number(offset), VMDK_DESCRIPTOR_BYTES));
    // Without a capacity of its own the extents count that the descriptor names.
    return capacity === 0n ? descriptorReferences(text, refuse) : parentOf(text);
  }
  if (magic === "COWD") return parentOf(textOf(head));
  return descriptorReferences(textOf(await read(0, VMDK_DESCRIPTOR_BYTES)), refuse);
}

/** Reads more than is well formed: all that qemu's sscanf(3) would take for an extent, and line breaks are spaces to it. */
function descriptorReferences(text: string, refuse: Refuse): ImageReference[] {
  const pattern = /\b(?:RW|RDONLY|NOACCESS)\s+[+-]?\d+\s*\S{1,10}?\s*"([^"\r\n]*)/g;
  const extents: ImageReference[] = [];
  for (const [, name = ""] of text.matchAll(pattern)) {
    if (extents.length === MOST_EXTENTS) refuse("it has too many extents");
    extents.push({ role: "extent", name });
  }
  if (extents.length === 0) refuse("its descriptor names no extents");
  return [...extents, ...parentOf(text)];
}

function parentOf(descriptor: string): ImageReference[] {
  const name = /parentFileNameHint(?:="|..|)([^"\n\0]{0,1023})/s.exec(descriptor)?.[1];
  return name === undefined ? [] : [{ role: "backing file", name, format: "vmdk" }];
}

function textOf(bytes: Buffer): string {
  return bytes.toString("utf8");
}

/** Refuses an image that refers to other files. @throws {DeviceError} that names the first */
export function refuseReferences(references: readonly ImageReference[], name: string, hint: string): void {
  const [first] = references;
  if (first === undefined) return;
  const where = references.length === 1 ? "" : ` and ${references.length - 1} more`;
  throw new DeviceError(`Cannot open "${name}": it refers to the ${first.role} "${first.name}"${where}`, { hint });
}
