/** What a file or device that is not clone metadata looks like, so that an error can say what was found instead. */
import { readU64, viewOf } from "../persistent-data/checksum.ts";
import { readMark } from "./repair-in-place.ts";

/** Bytes from the start of a device that `describeContent` likes to see. */
export const CONTENT_SAMPLE_BYTES = 69632;

interface Signature {
  label: string;
  offset: number;
  /** The bytes, one character each. */
  magic: string;
}

/** In order: containers before what may lie in their first sector. */
const SIGNATURES: readonly Signature[] = [
  { label: "a LUKS volume", offset: 0, magic: "LUKS\xba\xbe" },
  { label: "a LUKS volume (second header)", offset: 0, magic: "SKUL\xba\xbe" },
  { label: "a qcow2 image", offset: 0, magic: "QFI\xfb" },
  { label: "a VMDK image", offset: 0, magic: "KDMV" },
  { label: "a VHDX image", offset: 0, magic: "vhdxfile" },
  { label: "a VHD image", offset: 0, magic: "conectix" },
  { label: "a VDI image", offset: 64, magic: "\x7f\x10\xda\xbe" },
  { label: "an XFS file system", offset: 0, magic: "XFSB" },
  { label: "a squashfs file system", offset: 0, magic: "hsqs" },
  { label: "an NTFS file system", offset: 3, magic: "NTFS    " },
  { label: "an exFAT file system", offset: 3, magic: "EXFAT   " },
  { label: "a gzip file", offset: 0, magic: "\x1f\x8b" },
  { label: "an xz file", offset: 0, magic: "\xfd7zXZ\x00" },
  { label: "a zstd file", offset: 0, magic: "\x28\xb5\x2f\xfd" },
  { label: "a bzip2 file", offset: 0, magic: "BZh" },
  { label: "a zip file", offset: 0, magic: "PK\x03\x04" },
  { label: "an ELF program", offset: 0, magic: "\x7fELF" },
  { label: "a dm-snapshot exception store", offset: 0, magic: "SnAp" },
  { label: "dm-integrity metadata", offset: 0, magic: "integrt\x00" },
  { label: "a dm-verity hash device", offset: 0, magic: "verity\x00\x00" },
  { label: "dm-writecache metadata", offset: 0, magic: "\x21\x93\x48\x23" },
  { label: "an LVM physical volume", offset: 0, magic: "LABELONE" },
  { label: "an LVM physical volume", offset: 512, magic: "LABELONE" },
  { label: "a GPT partition table", offset: 512, magic: "EFI PART" },
  { label: "a tar archive", offset: 257, magic: "ustar" },
  { label: "an ext2, ext3 or ext4 file system", offset: 1080, magic: "\x53\xef" },
  { label: "swap space", offset: 4086, magic: "SWAPSPACE2" },
  { label: "an ISO 9660 image", offset: 32769, magic: "CD001" },
  { label: "a btrfs file system", offset: 65600, magic: "_BHRfS_M" },
  { label: "an MBR partition table or boot sector", offset: 510, magic: "\x55\xaa" },
];

/** Other users of the kernel's persistent-data library, by the magic number at offset 32 of their superblock. */
const PERSISTENT_DATA_MAGICS = new Map<number, string>([
  [27022010, "thin-pool metadata"],
  [0o6142003, "dm-cache metadata"],
  [2126579579, "dm-era metadata"],
]);

/** Names the kind of content by its first bytes (`CONTENT_SAMPLE_BYTES` of them, or fewer), or undefined. */
export function describeContent(bytes: Uint8Array): string | undefined {
  if (readMark(bytes) !== undefined) return "the mark of a repair in place that was cut off";
  if (bytes.length >= 40) {
    const label = PERSISTENT_DATA_MAGICS.get(readU64(viewOf(bytes), 32));
    if (label !== undefined) return label;
  }
  const found = SIGNATURES.find(({ offset, magic }) =>
    [...magic].every((character, i) => bytes[offset + i] === character.charCodeAt(0)),
  );
  if (found !== undefined) return found.label;
  return looksLikeText(bytes.subarray(0, 4096)) ? "text" : undefined;
}

/** Whether all bytes up to trailing zeros are printable ASCII, white space or parts of UTF-8 sequences. */
function looksLikeText(bytes: Uint8Array): boolean {
  let length = bytes.length;
  while (length > 0 && bytes[length - 1] === 0) length--;
  if (length === 0) return false;
  const text = bytes.subarray(0, length);
  if (text.some((byte) => byte === 0x7f || (byte < 0x20 && byte !== 9 && byte !== 10 && byte !== 12 && byte !== 13))) {
    return false;
  }
  return !new TextDecoder().decode(text, { stream: true }).includes("\ufffd");
}
