// @ts-check
/** The disk images that are copied, and the file systems they lie on. */
import { execFileSync, spawnSync } from "node:child_process";
import { randomFillSync } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";

const CHUNK = 4 * 2 ** 20;
/** Zeros are laid down in runs of this many bytes: a region of the default size. */
const UNIT = 64 * 2 ** 10;

/**
 * Writes an image whose data lies in equal extents, evenly spread; the rest are holes. Durable on return.
 * @param {string} path
 * @param {object} shape
 * @param {number} shape.size bytes
 * @param {number} [shape.data] bytes that are not holes; default all
 * @param {number} [shape.extents] number of extents the data is spread over; default 1
 * @param {number} [shape.zeros] share of the data that is zeros written out, 0 … 1; the rest is incompressible
 */
export function makeImage(path, { size, data = size, extents = 1, zeros = 0 }) {
  const fd = openSync(path, "wx");
  try {
    ftruncateSync(fd, size);
    const chunk = Buffer.allocUnsafe(CHUNK);
    for (let extent = 0; extent < extents; extent++) {
      const start = alignDown((size / extents) * extent);
      const end = Math.min(size, start + (extents === 1 ? data : alignDown(data / extents)));
      for (let offset = start; offset < end; offset += CHUNK) {
        fill(chunk, zeros);
        writeFully(fd, chunk.subarray(0, Math.min(CHUNK, end - offset)), offset);
      }
    }
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * @param {Buffer} chunk
 * @param {number} zeros
 */
function fill(chunk, zeros) {
  randomFillSync(chunk);
  for (let offset = 0; zeros > 0 && offset < chunk.length; offset += UNIT) {
    if (Math.random() < zeros) chunk.fill(0, offset, offset + UNIT);
  }
}

/**
 * @param {number} fd
 * @param {Uint8Array} data
 * @param {number} offset
 */
function writeFully(fd, data, offset) {
  for (let done = 0; done < data.length; ) done += writeSync(fd, data, done, data.length - done, offset + done);
}

/** @param {number} value */
function alignDown(value) {
  return Math.floor(value / UNIT) * UNIT;
}

/**
 * Throws unless two images are byte-identical. `qemu-img compare` passes over what is a hole in both, so a large sparse
 * image takes no longer than its data; `cmp` reads it all.
 * @param {string} left
 * @param {string} right
 */
export function assertSame(left, right) {
  // qemu-img would take a short image for one that ends in zeros, and its strict mode wants the same holes too.
  if (statSync(left).size !== statSync(right).size) throw new Error(`${left} and ${right} differ in size`);
  const compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw"];
  const [program = "", ...args] = findProgram("qemu-img") === undefined ? ["cmp"] : compare;
  const { status, error, stdout, stderr } = spawnSync(program, [...args, left, right], { encoding: "utf8" });
  if (error !== undefined) throw error;
  if (status !== 0) throw new Error(`${left} and ${right} differ: ${stdout}${stderr}`.trim());
}

/**
 * The path of a program, looked for also where Debian keeps what only root usually needs.
 * @param {string} name
 * @returns {string | undefined}
 */
export function findProgram(name) {
  const folders = [...(process.env.PATH ?? "").split(":"), "/usr/sbin", "/sbin"];
  return folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
}

/**
 * A new file system in a file, mounted through a loop device; needs root.
 * @param {string} folder where the file and the mount point are made
 * @param {"xfs" | "btrfs"} type
 * @param {number} size bytes
 * @returns {{ path: string, remove: () => void }} the mount point, and what undoes it all
 */
export function mountFileSystem(folder, type, size) {
  const image = join(folder, `${type}.img`);
  const path = join(folder, type);
  closeSync(openSync(image, "wx"));
  const remove = () => {
    rmSync(path, { recursive: true, force: true });
    rmSync(image, { force: true });
  };
  try {
    execFileSync("truncate", ["-s", String(size), image]);
    execFileSync(findProgram(`mkfs.${type}`) ?? `mkfs.${type}`, ["-q", image], { stdio: "ignore" });
    mkdirSync(path);
    execFileSync("mount", ["-o", "loop", image, path]);
  } catch (error) {
    remove();
    throw error;
  }
  return {
    path,
    remove() {
      // Removed only once unmounted: never the files inside by way of the mount point.
      execFileSync("umount", [path]);
      remove();
    },
  };
}
