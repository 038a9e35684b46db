// Whether a source is still the one that a clone was made with, where it is at the other end of a network.
import { describe, expect, test } from "vitest";
import { ChangedError, DeviceError } from "../../../src/base/errors.ts";
import {
  differenceFrom,
  remoteSourceFingerprint,
  renewedFingerprint,
  verifiedSource,
} from "../../../src/clone/fingerprint.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import type { RemoteDevice, RemoteIdentity } from "../../../src/device/remote-device.ts";

const SIZE = 4 * 1024 * 1024;
const UNRECOGNISED = "too few of its samples can be read to know it again";
/** Where samples are taken. */
const SAMPLES = Array.from({ length: 9 }, (_, index) => {
  const position = Math.floor(((SIZE - 16384) * index) / 8);
  return position - (position % 512);
});

/** A device in memory that is remote, whose content, identity and connection are the test's to change. */
class RemoteMemory extends MemoryDevice implements RemoteDevice {
  identity: RemoteIdentity;
  incarnation = 0;
  changed: string | undefined;
  readonly mostAtOnce = SIZE;
  /** How often reads are to fail from now on. */
  failures = 0;
  away = false;
  /** Offsets at which 16 KiB cannot be read. */
  unreadable: readonly number[] = [];
  reads = 0;
  /** Called before a read; what it resolves to is called after that. */
  onRead: (() => Promise<(() => Promise<void>) | undefined | void>) | undefined;

  constructor(identity: Partial<RemoteIdentity> = {}) {
    super({ size: SIZE, content: Buffer.alloc(SIZE, 7) });
    this.identity = { kind: "nbd", size: SIZE, ...identity };
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.reads++;
    if (this.away) throw new DeviceError("Cannot read: ETIMEDOUT", { errno: "ETIMEDOUT" });
    const isBad = buffer.length === 16384 && this.unreadable.includes(offset);
    if (this.failures-- > 0 || isBad) throw new DeviceError("Cannot read: EIO", { errno: "EIO" });
    const after = await this.onRead?.();
    await super.read(offset, buffer);
    await after?.();
  }
}

describe("A remote source", () => {
  test("with an entity tag is known by it, and nothing is read for that", async () => {
    const device = new RemoteMemory({ kind: "http", etag: '"a"' });
    const pinned = await remoteSourceFingerprint(device);
    expect(pinned).toEqual({ kind: "http", size: SIZE, etag: '"a"' });
    expect(device.reads).toBe(0);
    expect(differenceFrom(pinned, { ...pinned, etag: '"b"' })).toMatch(/entity tag is "b" now and was "a"/);
    expect(differenceFrom(pinned, { ...pinned, kind: "s3" })).toMatch(
      /object in S3 now and was a file on a web server/,
    );
  });

  test("that says itself that it has changed has", async () => {
    const device = new RemoteMemory({ kind: "http", lastModified: "then" });
    const source = verifiedSource(device, await remoteSourceFingerprint(device));
    expect(source.changed).toBeUndefined();
    device.changed = "its size is 1 now";
    expect(source.changed).toBe("its size is 1 now");
  });

  test("without a tag is looked at again when its connection was made anew, and only then", async () => {
    const device = new RemoteMemory();
    const source = verifiedSource(device, await remoteSourceFingerprint(device));
    const before = device.reads;
    await source.read(0, new Uint8Array(512));
    device.incarnation++;
    await source.read(0, new Uint8Array(512));
    expect(device.reads).toBe(before + 2 + 9);
    await source.read(0, new Uint8Array(512));
    expect(device.reads).toBe(before + 3 + 9);
  });

  test("that is another one when it is back gives nothing any more", async () => {
    const device = new RemoteMemory();
    const source = verifiedSource(device, await remoteSourceFingerprint(device));
    await device.write(0, Buffer.alloc(65536, 8));
    device.incarnation++;
    for (let i = 0; i < 2; i++) await expect(source.read(SIZE / 2, new Uint8Array(512))).rejects.toThrow(ChangedError);
    await expect(source.extents(0, SIZE)).rejects.toThrow("its content is another");
    expect(source.changed).toBe("its content is another");
  });

  test("that is another one for the time of a read only is read again", async () => {
    const device = new RemoteMemory();
    const source = verifiedSource(device, await remoteSourceFingerprint(device));
    device.onRead = async () => {
      device.onRead = undefined;
      const content = Buffer.alloc(512);
      await device.read(1024 * 1024 + 4096, content);
      await device.write(1024 * 1024 + 4096, Buffer.alloc(512, 9));
      device.incarnation += 2; // the right one is back once this has been answered
      return () => device.write(1024 * 1024 + 4096, content);
    };
    const buffer = Buffer.alloc(512);
    await source.read(1024 * 1024 + 4096, buffer);
    expect(buffer.equals(Buffer.alloc(512, 7))).toBe(true);
  });

  test("that is lost at every read is given up, and not believed", async () => {
    const device = new RemoteMemory();
    const source = verifiedSource(device, await remoteSourceFingerprint(device));
    device.onRead = async () => {
      device.incarnation++;
    };
    await expect(source.read(0, new Uint8Array(512))).rejects.toMatchObject({ away: true });
    device.onRead = undefined;
    await source.read(0, new Uint8Array(512));
  });

  test("is the same as long as most of the samples can be read, and agree", async () => {
    const device = new RemoteMemory();
    device.failures = 9; // some samples need a second attempt
    const pinned = await remoteSourceFingerprint(device);
    expect(pinned.sample).not.toContain("-");
    for (const count of [0, 1, 4, 5, 8, 9]) {
      device.unreadable = SAMPLES.slice(0, count);
      const now = await remoteSourceFingerprint(device);
      expect(now.sample?.split(" ").filter((digest) => digest === "-")).toHaveLength(count);
      expect(differenceFrom(pinned, now), `${count} unreadable`).toBe(count < 5 ? undefined : UNRECOGNISED);
    }
    await device.write(SIZE - 65536, Buffer.alloc(65536, 8));
    device.unreadable = SAMPLES.slice(0, 8);
    expect(differenceFrom(pinned, await remoteSourceFingerprint(device))).toBe("its content is another");
  });

  // A disk that had failed in places when the clone was made is known by the others; one that had everywhere, by nothing.
  test("is not compared where it could not be read when that was pinned", async () => {
    const device = new RemoteMemory();
    device.unreadable = SAMPLES.slice(1);
    const pinned = await remoteSourceFingerprint(device);
    expect(differenceFrom(pinned, pinned)).toBeUndefined();
    device.unreadable = [];
    expect(differenceFrom(pinned, await remoteSourceFingerprint(device))).toBeUndefined();
    device.unreadable = SAMPLES.slice(0, 1);
    expect(differenceFrom(pinned, await remoteSourceFingerprint(device))).toBe(UNRECOGNISED);
    device.unreadable = SAMPLES;
    const blind = await remoteSourceFingerprint(device);
    expect(blind.sample).toMatch(/^(- )*-$/);
    expect(differenceFrom(blind, blind)).toBeUndefined();
    device.unreadable = [];
    expect(differenceFrom(blind, await remoteSourceFingerprint(device))).toBeUndefined();
  });

  test("that is another one, and cannot be read where samples are, gives nothing until it is known again", async () => {
    const device = new RemoteMemory();
    const source = verifiedSource(device, await remoteSourceFingerprint(device));
    await device.write(0, Buffer.alloc(SIZE, 8));
    device.incarnation++;
    device.unreadable = SAMPLES;
    const buffer = Buffer.alloc(512);
    const reading = source.read(SIZE / 2 + 65536, buffer);
    await expect(reading).rejects.toMatchObject({ away: true, message: expect.stringContaining(UNRECOGNISED) });
    expect(buffer.every((byte) => byte === 0)).toBe(true);
    expect(source.changed).toBeUndefined();
    await device.write(0, Buffer.alloc(SIZE, 7));
    device.unreadable = [];
    await source.read(SIZE / 2 + 65536, buffer);
    expect(buffer[0]).toBe(7);
  });

  test.for([
    new DeviceError("Cannot read: EACCES", { errno: "EACCES" }),
    new DeviceError("Cannot read: ENXIO", { errno: "ENXIO" }),
    new ChangedError("Cannot read: it has changed", { difference: "it has changed" }),
  ])("whose reads fail as a whole has no fingerprint: %s", async (error) => {
    const device = new RemoteMemory();
    device.onRead = () => Promise.reject(error);
    await expect(remoteSourceFingerprint(device)).rejects.toBe(error);
  });

  test("that cannot be reached has told nothing, and is asked again", async () => {
    const device = new RemoteMemory();
    const source = verifiedSource(device, await remoteSourceFingerprint(device));
    await device.write(0, Buffer.alloc(65536, 8));
    device.incarnation++;
    device.away = true;
    await expect(source.read(0, new Uint8Array(512))).rejects.toThrow("ETIMEDOUT");
    expect(source.changed).toBeUndefined();
    device.away = false;
    await expect(source.read(0, new Uint8Array(512))).rejects.toThrow("its content is another");
  });

  test("whose server no longer tells a tag is not taken for the same, unless another one tells", async () => {
    const pinned = { kind: "http", size: SIZE, etag: '"a"', lastModified: "then" };
    const untagged = await remoteSourceFingerprint(new RemoteMemory({ kind: "http" }));
    expect(differenceFrom(pinned, untagged)).toBe("its server no longer tells its entity tag");
    expect(differenceFrom({ kind: "http", size: SIZE, lastModified: "then" }, untagged)).toBe(
      "its server no longer tells its time of last change",
    );
    expect(differenceFrom(pinned, { kind: "http", size: SIZE, lastModified: "then" })).toBeUndefined();
    expect(differenceFrom(pinned, { kind: "http", size: SIZE, etag: '"a"' })).toBeUndefined();
  });

  test("that was known by samples is compared by them also once its server tells tags", async () => {
    const device = new RemoteMemory({ kind: "http" });
    const pinned = await remoteSourceFingerprint(device);
    device.identity = { ...device.identity, etag: '"a"' };
    expect(differenceFrom(pinned, await remoteSourceFingerprint(device, { sample: true }))).toBeUndefined();
    await device.write(0, Buffer.alloc(65536, 8));
    const now = await remoteSourceFingerprint(device, { sample: true });
    expect(now.etag).toBe('"a"');
    expect(differenceFrom(pinned, now)).toBe("its content is another");
  });

  test("of another size is another one, whatever else is known", async () => {
    const pinned = await remoteSourceFingerprint(new RemoteMemory());
    expect(differenceFrom(pinned, { kind: "nbd", size: 1 })).toMatch(/its size is 1 bytes now/);
  });
});

// Metadata may be made up by somebody who has never seen the file that it names. What such a one cannot know must be pinned.
describe("A fingerprint", () => {
  const now = {
    sourceFile: { kind: "file", size: SIZE, inode: "12", mtimeNs: "1700000000123456789" },
    destinationFile: { kind: "file", inode: "13", birthtimeNs: "1700000000123456789" },
    sourceDevice: { kind: "block", size: SIZE, serial: "wwid:1", sample: "aa bb" },
    destinationDevice: { kind: "block", size: SIZE, serial: "wwid:1" },
  } as const;

  test.for(Object.entries(now))(
    "of a %s fits it, and with anything but the size left out fits nothing",
    ([, whole]) => {
      expect(differenceFrom(whole, whole)).toBeUndefined();
      for (const left of Object.keys(whole)) {
        const pinned = Object.fromEntries(Object.entries(whole).filter(([name]) => name !== left));
        const expected = left === "size" ? undefined : "the metadata does not say enough to know it again";
        expect(differenceFrom(pinned, whole), left).toBe(expected);
      }
    },
  );

  test.for([
    { kind: "http", size: SIZE, etag: '"a"' },
    { kind: "http", size: SIZE, lastModified: "then" },
    { kind: "nbd", size: SIZE, sample: "aa bb" },
  ] as const)("of something remote fits nothing without what that is known by: %j", (whole) => {
    expect(differenceFrom(whole, whole)).toBeUndefined();
    expect(differenceFrom({ kind: whole.kind, size: SIZE }, whole)).toMatch(/does not say enough/);
  });

  test("of a disk with a serial number fits it while one sample can be read: it dies, but is no other", () => {
    const pinned = { ...now.sourceDevice, sample: "aa bb cc -" };
    expect(differenceFrom(pinned, { ...pinned, sample: "- bb - -" })).toBeUndefined();
    expect(differenceFrom(pinned, { ...pinned, sample: "- bx - -" })).toBe("its content is another");
    expect(differenceFrom(pinned, { ...pinned, sample: "- - - dd" })).toBe(UNRECOGNISED);
  });

  test("keeps what was pinned of samples that cannot be read now, and learns what can", () => {
    const pinned = { kind: "nbd", size: SIZE, sample: "aa bb -" };
    expect(renewedFingerprint(pinned, { kind: "nbd", size: SIZE, sample: "- bb cc" }).sample).toBe("aa bb cc");
    expect(renewedFingerprint(pinned, { kind: "nbd", size: SIZE, sample: "- - -" })).toEqual(pinned);
    expect(renewedFingerprint({ kind: "http", etag: '"a"' }, pinned)).toEqual(pinned);
  });
});
