// Image formats by their first bytes, as qemu-img 7.2 writes them; test/interop meets the real ones.
import { describe, expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../src/base/errors.ts";
import { detectFormat, detectImageFormat } from "../../../src/clone/image-formats.ts";
import { FilterDevice } from "../../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";

/** A head of 512 bytes with text at an offset. */
function head(magic: string, offset = 0): Uint8Array {
  const bytes = Buffer.alloc(512);
  bytes.write(magic, offset, "latin1");
  return bytes;
}

/** The footer of a VHD of fixed size with a disk of `diskSize` bytes before it. */
function vhdFooter(diskSize: number, { type = 2, spoil = 0 } = {}): Buffer {
  const footer = Buffer.alloc(512);
  footer.write("conectix");
  footer.writeBigUInt64BE(BigInt(diskSize), 48);
  footer.writeUInt32BE(type, 60);
  const sum = footer.reduce((total, byte) => total + byte, 0);
  footer.writeUInt32BE(2 ** 32 - 1 - sum - spoil, 64);
  return footer;
}

describe("detectFormat()", () => {
  test.each([
    ["qcow", "QFI\xfb\0\0\0\x01", 0],
    ["qcow2", "QFI\xfb\0\0\0\x02", 0],
    ["qcow2", "QFI\xfb\0\0\0\x03", 0],
    ["qed", "QED\0", 0],
    ["vmdk", "KDMV", 0],
    ["vmdk", "COWD", 0],
    ["vmdk", "# Disk DescriptorFile\nversion=1\n", 0],
    ["vhdx", "vhdxfile", 0],
    ["vpc", "conectix", 0],
    ["vdi", "\x7f\x10\xda\xbe", 64],
    ["parallels", "WithoutFreeSpace", 0],
    ["parallels", "WithouFreSpacExt", 0],
  ])("knows %s", (format, magic, offset) => expect(detectFormat(head(magic, offset))).toBe(format));

  test.each([
    ["zeros", head("")],
    ["nothing", new Uint8Array(0)],
    ["a magic cut off", Buffer.from("QFI")],
    ["a LUKS volume, whose bytes are the disk", head("LUKS\xba\xbe\0\x02")],
    ["a magic a byte too late", head("QFI\xfb", 1)],
    ["text", head("# Disk Descr")],
  ])("takes %s for no image", (_, bytes) => expect(detectFormat(bytes)).toBeUndefined());

  test("knows a VHD of fixed size by its footer", () => {
    expect(detectFormat(head(""), { bytes: vhdFooter(1024), size: 1536 })).toBe("vpc");
  });

  test.each([
    ["whose checksum is wrong", vhdFooter(1024, { spoil: 1 })],
    ["of a dynamic disk", vhdFooter(1024, { type: 3 })],
    ["of a larger disk", vhdFooter(2048)],
    ["cut off", vhdFooter(1024).subarray(1)],
  ])("does not take a footer %s for one", (_, bytes) => {
    expect(detectFormat(head(""), { bytes, size: 1536 })).toBeUndefined();
  });
});

describe("detectImageFormat()", () => {
  test("reads the first and the last bytes of a device", async () => {
    const fixed = new MemoryDevice({ size: 1536 });
    await fixed.write(1024, vhdFooter(1024));
    expect(await detectImageFormat(fixed)).toBe("vpc");
    expect(await detectImageFormat(new MemoryDevice({ size: 1536, content: head("QFI\xfb") }))).toBe("qcow2");
    for (const size of [1, 511, 512, 1023, 1024, 4096]) {
      expect(await detectImageFormat(new MemoryDevice({ size }))).toBeUndefined();
    }
  });

  test("an end that cannot be read is no image; a start that cannot be read, and a change, are errors", async () => {
    expect(await detectImageFormat(new Failing(new DeviceError("Cannot read: EIO"), 1024))).toBeUndefined();
    await expect(detectImageFormat(new Failing(new DeviceError("Cannot read: EIO"), 0))).rejects.toThrow("EIO");
    const changed = new ChangedError("Cannot read: it has changed", { difference: "it has changed" });
    await expect(detectImageFormat(new Failing(changed, 1024))).rejects.toThrow(ChangedError);
  });
});

class Failing extends FilterDevice {
  readonly #error: Error;
  readonly #from: number;

  constructor(error: Error, from: number) {
    super(new MemoryDevice({ size: 4096 }));
    this.#error = error;
    this.#from = from;
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    if (offset >= this.#from) throw this.#error;
    await super.read(offset, buffer);
  }
}
