/** What can be known of a file from the kind of file system it lies on. */
import { fileSystemType, inodeFlags } from "./libc.ts";

/** Where a file lies: in memory alone (tmpfs, ramfs), behind a network or another process, or on a disk of this machine. */
export type FileSystemKind = "tmpfs" | "remote" | "local";

/** linux/magic.h: tmpfs, ramfs. */
const IN_MEMORY = new Set([0x01021994, 0x858458f6]);

/** linux/magic.h and statfs(2); cluster file systems count, since a read may wait for another machine's lock. */
const REMOTE = new Set([
  0x6969, // NFS
  0x517b, // SMB
  0xff534d42, // CIFS
  0xfe534d42, // SMB2
  0x65735546, // FUSE
  0x01021997, // 9P
  0x00c36400, // Ceph
  0x5346414f, // OpenAFS
  0x6b414653, // AFS of the kernel
  0x73757245, // Coda
  0x564c, // NCP
  0x01161970, // GFS2
  0x7461636f, // OCFS2
  0x0bd00bd0, // Lustre
  0x47504653, // GPFS
  0x19830326, // BeeGFS
  0xaad7aaea, // PanFS
  0x20030528, // OrangeFS
  0x786f4256, // VirtualBox's shared folders
  0xbacbacbc, // VMware's
]);

const EXT4 = 0xef53;
/** XFS, btrfs, F2FS, bcachefs: fallocate(2), FALLOC_FL_ZERO_RANGE. */
const ZERO_RANGE = new Set([0x58465342, 0x9123683e, 0xf2f52010, 0xca451a4e]);

/**
 * On what kind of file system an open file lies; what is not known counts as local. Not to be asked of a block device,
 * whose node lies in memory as a rule. @throws {SyscallError}
 */
export async function fileSystemKind(fd: number): Promise<FileSystemKind> {
  const type = await fileSystemType(fd);
  if (IN_MEMORY.has(type)) return "tmpfs";
  return REMOTE.has(type) ? "remote" : "local";
}

/**
 * Whether ranges of an open file are made to read as zeros, and stay allocated, without writing them; false where that is not
 * known. (To try it behind the end of the file would tell for sure, but leaves space allocated there on ext4, which a
 * punch does not give back.) @throws {SyscallError}
 */
export async function hasZeroRange(fd: number): Promise<boolean> {
  const type = await fileSystemType(fd);
  // Files of ext2 and ext3, and those that ext4 has kept in their way, have no extents to mark as unwritten.
  return type === EXT4 ? Math.floor(inodeFlags(fd) / EXTENTS_FL) % 2 === 1 : ZERO_RANGE.has(type);
}

/** linux/fs.h, FS_EXTENT_FL. */
const EXTENTS_FL = 0x80000;
