// Whether a source is still the one that a clone was made with, where it is at the other end of a network.
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import { differenceFrom, remoteSourceFingerprint, watchRemoteSource } from "../../../src/clone/fingerprint.ts";
import { MemoryDevice } from "../../../src/device/memory-device.ts";
import type { RemoteDevice, RemoteIdentity } from "../../../src/device/remote-device.ts";

const SIZE = 4 * 1024 * 1024;

/** A device in memory that is remote, whose content, identity and connection are the test's to change. */
class RemoteMemory extends MemoryDevice implements RemoteDevice {
  identity: RemoteIdentity;
  incarnation = 0;
  changed: string | undefined;
  readonly mostAtOnce = SIZE;
  /** How often reads are to fail from now on. */
  failures = 0;
  away = false;
  reads = 0;

  constructor(identity: Partial<RemoteIdentity> = {}) {
    super({ size: SIZE, content: Buffer.alloc(SIZE, 7) });
    this.identity = { kind: "nbd", size: SIZE, ...identity };
  }

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.reads++;
    if (this.away) throw new DeviceError("Cannot read: ETIMEDOUT", { errno: "ETIMEDOUT" });
    if (this.failures-- > 0) throw new DeviceError("Cannot read: EIO", { errno: "EIO" });
    await super.read(offset, buffer);
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
    const change = watchRemoteSource(device, await remoteSourceFingerprint(device));
    expect(await change()).toBeUndefined();
    device.changed = "its size is 1 now";
    expect(await change()).toBe("its size is 1 now");
  });

  test("without a tag is looked at again when its connection was made anew, and only then", async () => {
    const device = new RemoteMemory();
    const change = watchRemoteSource(device, await remoteSourceFingerprint(device));
    const before = device.reads;
    await device.write(0, Buffer.alloc(65536, 8));
    expect(await change()).toBeUndefined();
    expect(device.reads).toBe(before);
    device.incarnation++;
    expect(await change()).toBe("its content is another");
    expect(await change()).toBe("its content is another");
  });

  test("is the same as long as the samples agree that could be read", async () => {
    const device = new RemoteMemory();
    device.failures = 9; // some samples need a second attempt
    const pinned = await remoteSourceFingerprint(device);
    expect(pinned.sample).not.toContain("-");
    device.failures = 100;
    const blind = await remoteSourceFingerprint(device);
    expect(blind.sample).toMatch(/^(- )*-$/);
    expect(differenceFrom(pinned, blind)).toBeUndefined();
    device.failures = 0;
    await device.write(SIZE - 65536, Buffer.alloc(65536, 8));
    expect(differenceFrom(pinned, await remoteSourceFingerprint(device))).toBe("its content is another");
  });

  test("that cannot be reached has told nothing, and is asked again", async () => {
    const device = new RemoteMemory();
    const change = watchRemoteSource(device, await remoteSourceFingerprint(device));
    await device.write(0, Buffer.alloc(65536, 8));
    device.incarnation++;
    device.away = true;
    await expect(change()).rejects.toThrow("ETIMEDOUT");
    device.away = false;
    expect(await change()).toBe("its content is another");
  });

  test("of another size is another one, whatever else is known", async () => {
    const pinned = await remoteSourceFingerprint(new RemoteMemory());
    expect(differenceFrom(pinned, { kind: "nbd", size: 1 })).toMatch(/its size is 1 bytes now/);
  });
});
