/** Headers of images: which format they are of, and which files they refer to. A message is what an image begins with. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { detectFormat, detectImageFormat } from "../../../src/clone/image-formats.ts";
import { IMAGE_FORMATS, localImage } from "../../../src/clone/image-graph.ts";
import { readReferences } from "../../../src/clone/image-references.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import type { SeededRandom } from "../../support/random.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { mutate } from "../mutate.ts";
import { type FuzzMessage, type FuzzTarget, mustHold, outcomeOfAsync } from "../target.ts";

const BACKING_FORMAT = 0xe2792aca;
const DATA_FILE = 0x44415441;
/** An image is no smaller, bytes. */
const LEAST = 1024;

/** docs/interop/qcow2.txt */
function qcow2(random: SeededRandom, name: string): Buffer {
  const version = random.pick([1, 2, 3]);
  const bytes = Buffer.alloc(LEAST);
  bytes.write("QFI\xfb", "latin1");
  bytes.writeUInt32BE(version, 4);
  bytes.writeUInt32BE(version === 1 ? 0 : random.integer(10, 21), 20);
  const hasDataFile = version === 3 && random.oneIn(3);
  if (hasDataFile) bytes.writeBigUInt64BE(4n, 72);
  if (version === 3) bytes.writeUInt32BE(104, 100);
  let offset = version === 2 ? 72 : 104;
  const extension = (type: number, text: string): void => {
    bytes.writeUInt32BE(type, offset);
    bytes.writeUInt32BE(Buffer.byteLength(text), offset + 4);
    offset += 8 + Math.ceil(bytes.write(text, offset + 8) / 8) * 8;
  };
  if (version > 1) extension(BACKING_FORMAT, random.pick(["raw", "qcow2"]));
  if (hasDataFile) extension(DATA_FILE, "data.raw");
  bytes.write(name, 300);
  bytes.writeBigUInt64BE(300n, 8);
  bytes.writeUInt32BE(Buffer.byteLength(name), 16);
  return bytes;
}

/** docs/interop/qed_spec.txt */
function qed(name: string): Buffer {
  const bytes = Buffer.alloc(LEAST);
  bytes.write("QED\0");
  bytes.writeBigUInt64LE(5n, 16);
  bytes.writeUInt32LE(200, 56);
  bytes.writeUInt32LE(Buffer.byteLength(name), 60);
  bytes.write(name, 200);
  return bytes;
}

function vmdk(random: SeededRandom, name: string): Buffer {
  const parent = random.oneIn(2) ? `parentFileNameHint="${name}"\n` : "";
  const text = `# Disk DescriptorFile\nversion=1\nCID=fffffffe\n${parent}# Extent\nRW 2048 FLAT "${name}" 0\nRDONLY 8 ZERO\n`;
  if (random.oneIn(2)) return Buffer.from(text.padEnd(LEAST, "\0"));
  const bytes = Buffer.alloc(2 * LEAST);
  bytes.write("KDMV");
  bytes.writeBigUInt64LE(random.oneIn(2) ? 0n : 2048n, 12);
  bytes.writeBigUInt64LE(1n, 28);
  bytes.write(text, 512);
  return bytes;
}

/** A VHD of fixed size, by its footer; and formats of which nothing but the magic number is read. */
function other(random: SeededRandom): Buffer {
  const bytes = Buffer.alloc(LEAST);
  const footer = bytes.subarray(512);
  footer.write("conectix");
  footer.writeBigUInt64BE(512n, 48);
  footer.writeUInt32BE(2, 60);
  footer.writeUInt32BE(2 ** 32 - 1 - footer.reduce((sum, byte) => sum + byte, 0), 64);
  const magic = random.pick(["", "vhdxfile", "WithoutFreeSpace", "conectix", "COWD"]);
  if (magic !== "") bytes.write(magic);
  else if (random.oneIn(2)) bytes.write("\x7f\x10\xda\xbe", 64, "latin1");
  return bytes;
}

function image(random: SeededRandom): Buffer {
  const name = random.pick(["base.img", "/etc/shadow", "é ü.raw", "json:{}", "../../x", "nbd://h/x", "a".repeat(200)]);
  return random.pick([() => qcow2(random, name), () => qed(name), () => vmdk(random, name), () => other(random)])();
}

const DICTIONARY = ['RW 1 FLAT "', 'parentFileNameHint="', "QFI\xfb", "KDMV", "RW 1", 'NOACCESS 9 X "', "\n", '"'];

function generate(random: SeededRandom): FuzzMessage {
  const good = image(random);
  if (random.oneIn(10)) return { bytes: good, isGood: true };
  return { bytes: mutate(good, random, { dictionary: DICTIONARY, others: [image(random)] }), isGood: false };
}

/** Formats and references. */
export const imageHeaders: FuzzTarget = {
  name: "image-headers",
  weight: 60,
  mostBytes: 4 * 1024 * 1024,
  open: () => ({
    generate,
    async run(message) {
      const device = new MemoryDevice({ size: Math.max(LEAST, message.length), name: "disk", content: message });
      const found = await detectImageFormat(device);
      mustHold(found === undefined || IMAGE_FORMATS.includes(found), `the format ${found}`);
      detectFormat(message, { bytes: message.subarray(-512), size: message.length });
      for (const format of ["qcow2", "qed", "vmdk", "vdi"]) {
        if (format !== found) await outcomeOfAsync(async () => void (await readReferences(device, format)));
      }
      return await outcomeOfAsync(async () => {
        const references = await readReferences(device, found ?? "raw");
        mustHold(references.length <= 4097, "more references than are allowed");
      });
    },
    async [Symbol.asyncDispose]() {},
  }),
};

/** Chains of images in files, as they are looked at before qemu is told of them. */
export const imageChains: FuzzTarget = {
  name: "image-chains",
  weight: 1,
  mostBytes: 4 * 1024 * 1024,
  async open() {
    const place = await scratchDirectory();
    await mkdir(join(place.path, "images"));
    await writeFile(join(place.path, "images", "base.img"), Buffer.alloc(65536, 1));
    await writeFile(join(place.path, "images", "data.raw"), Buffer.alloc(65536, 2));
    const path = join(place.path, "images", "disk");
    return {
      // Most of the files that they name are not there.
      generate: (random) => ({ ...generate(random), isGood: false }),
      async run(message) {
        await writeFile(path, message);
        const format = detectFormat(message) ?? "vdi";
        return await outcomeOfAsync(async () => {
          const found = await localImage(path, format, message.length % 2 === 0);
          mustHold(found.files[0] === path && found.files.length <= 64 + 4097, "other files");
          await found.check();
        });
      },
      [Symbol.asyncDispose]: () => place[Symbol.asyncDispose](),
    };
  },
};
