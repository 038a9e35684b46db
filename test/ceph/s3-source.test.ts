// Objects of Ceph's S3 gateway as sources: put there by s3cmd, read by `clone` with what other programs leave about their account.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, inject, test } from "vitest";
import { hashesBelow } from "../support/file-hashes.ts";
import { holds, randomFile, sparseFile } from "../support/files.ts";
import { NbdSession } from "../support/nbd-session.ts";
import { type CloneRun, clone, cloneOk, eventually, expectFailure, oneJson, startClone } from "../support/run-clone.ts";
import { type Bucket, newBucket } from "../support/s3-bucket.ts";
import { run, type Scratch, scratchDirectory } from "../support/scratch.ts";
import { type ServedStatus, startServe, stopServe } from "../support/serve.ts";
import { openTunnel } from "../support/tunnel.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const ceph = inject("ceph");

/** Nobody's account but this one: nothing of whoever runs the tests. */
const NOTHING = {
  AWS_PROFILE: undefined,
  AWS_SESSION_TOKEN: undefined,
  AWS_CONFIG_FILE: "/dev/null",
  AWS_SHARED_CREDENTIALS_FILE: "/dev/null",
  AWS_EC2_METADATA_DISABLED: "true",
  AWS_ACCESS_KEY_ID: undefined,
  AWS_SECRET_ACCESS_KEY: undefined,
  AWS_REGION: undefined,
  AWS_DEFAULT_REGION: undefined,
  AWS_ENDPOINT_URL: undefined,
  AWS_ENDPOINT_URL_S3: undefined,
  http_proxy: undefined,
  https_proxy: undefined,
};
const ENV = {
  ...NOTHING,
  AWS_ENDPOINT_URL: ceph.s3,
  AWS_ACCESS_KEY_ID: ceph.accessKey,
  AWS_SECRET_ACCESS_KEY: ceph.secretKey,
};

/** A directory, a bucket, and an object in it with these bytes. */
async function objectOf(
  size: number,
  key = "disk.img",
): Promise<Scratch & { bucket: Bucket; bytes: Buffer; source: string }> {
  const scratch = await scratchDirectory();
  const bytes = await randomFile(join(scratch.path, "object"), size);
  const bucket = await newBucket(ceph, scratch.path);
  await bucket.put(key, join(scratch.path, "object"));
  return { ...scratch, bucket, bytes, source: `s3://${bucket.name}/${key}` };
}

describe("an object of an S3 gateway", () => {
  test("is created, hydrated, verified and finalized", async () => {
    await using place = await objectOf(10 * MIB + 12345);
    const options = { cwd: place.path, env: ENV };
    const created = oneJson(await cloneOk(["create", place.source, "disk.img", "--json"], options));
    expect(created).toMatchObject({ source: place.source, exactSize: place.bytes.length });
    await cloneOk(["hydrate", "disk.img", "--progress", "none"], options);
    const verified = oneJson(await cloneOk(["verify", "disk.img", "--progress", "none", "--json"], options));
    expect(verified).toMatchObject({ equal: true, differing: [] });
    await cloneOk(["finalize", "disk.img"], options);
    expect(await holds(join(place.path, "disk.img"), place.bytes)).toBe(true);
  });

  test("is copied in one go where it was put in parts, whose entity tag is no checksum", async () => {
    await using place = await objectOf(200 * MIB + 1);
    const options = { cwd: place.path, env: ENV, longestMs: 170_000 };
    await cloneOk(["copy", place.source, "disk.img", "--progress", "none"], options);
    expect(await holds(join(place.path, "disk.img"), place.bytes)).toBe(true);
  });

  test("is copied with its long runs of zeros", async () => {
    await using scratch = await scratchDirectory();
    const bucket = await newBucket(ceph, scratch.path);
    const object = join(scratch.path, "object");
    const content = await sparseFile(object, 48 * MIB, [
      [5 * MIB, MIB],
      [40 * MIB, 2 * MIB],
    ]);
    await bucket.put("sparse.img", object);
    const options = { cwd: scratch.path, env: ENV };
    await cloneOk(["copy", `s3://${bucket.name}/sparse.img`, "disk.img", "--progress", "none"], options);
    expect(await holds(join(scratch.path, "disk.img"), content)).toBe(true);
  });

  test("is served while it is hydrated", async () => {
    await using place = await objectOf(40 * MIB);
    const options = { cwd: place.path, env: ENV };
    await cloneOk(["create", place.source, "disk.img"], options);
    await using server = await startServe({ clone: "disk.img", args: ["--rate", "20M"], ...options });
    await run("nbdcopy", server.uri, join(place.path, "read"));
    expect(await holds(join(place.path, "read"), place.bytes)).toBe(true);
    await server.tune("--rate", "max");
    await server.hydrated();
    await stopServe(server);
    await cloneOk(["finalize", "disk.img"], options);
    expect(await holds(join(place.path, "disk.img"), place.bytes)).toBe(true);
  });

  test("is found by a profile in the files that the AWS programs share", async () => {
    await using place = await objectOf(3 * MIB);
    const [config, credentials] = [join(place.path, "config"), join(place.path, "credentials")];
    await writeFile(config, `[profile lab]\nregion = eu-central-1\nendpoint_url = ${ceph.s3}\n`);
    const keys = `aws_access_key_id = ${ceph.accessKey}\naws_secret_access_key = ${ceph.secretKey}\n`;
    await writeFile(credentials, `[lab]\n${keys}`, { mode: 0o600 });
    const env = { ...NOTHING, AWS_CONFIG_FILE: config, AWS_SHARED_CREDENTIALS_FILE: credentials, AWS_PROFILE: "lab" };
    await cloneOk(["copy", place.source, "disk.img", "--progress", "none"], { cwd: place.path, env });
    expect(await holds(join(place.path, "disk.img"), place.bytes)).toBe(true);
  });

  test("is read as from Amazon, the bucket being part of the host's name, through a proxy and with TLS", async () => {
    await using place = await objectOf(3 * MIB);
    await using proxy = await openTunnel(ceph.s3Tls);
    const { AWS_ENDPOINT_URL: _, ...keys } = ENV;
    const env = {
      ...keys,
      AWS_ENDPOINT_URL: undefined,
      AWS_REGION: "us-east-1",
      https_proxy: proxy.url,
      NODE_EXTRA_CA_CERTS: ceph.authority,
    };
    await cloneOk(["copy", place.source, "disk.img", "--progress", "none"], { cwd: place.path, env });
    expect(await holds(join(place.path, "disk.img"), place.bytes)).toBe(true);
    expect(new Set(proxy.asked)).toEqual(new Set([`${place.bucket.name}.${ceph.dnsName}:443`]));
  });

  test("may have any key", async () => {
    await using scratch = await scratchDirectory();
    const bucket = await newBucket(ceph, scratch.path);
    const options = { cwd: scratch.path, env: ENV };
    const keys = [
      "with space.img",
      "größe/диск/磁盘.img",
      "a+b=c&d,e;f.img",
      "50%/%41.img",
      "what?x=1#top.img",
      "double//slash.img",
      "brackets[1](2){3}.img",
      "quote'\"`$.img",
      "back\\slash.img",
      "tilde~star*.img",
    ];
    for (const [index, key] of keys.entries()) {
      const bytes = await randomFile(join(scratch.path, "object"), MIB / 4 + index);
      await bucket.put(key, join(scratch.path, "object"));
      await cloneOk(["copy", `s3://${bucket.name}/${key}`, `${index}.img`, "--progress", "none"], options);
      expect(await holds(join(scratch.path, `${index}.img`), bytes), key).toBe(true);
    }
  });
});

describe("a source that cannot be read", () => {
  /** Neither key is in what was said, nor in any file that was made. */
  async function expectNoSecret(place: Scratch, said: CloneRun, secrets: readonly string[]): Promise<void> {
    for (const secret of secrets) expect(`${said.stdout}${said.stderr}`).not.toContain(secret);
    for (const name of (await hashesBelow(place.path)).keys()) {
      if (name.endsWith(".s3cfg")) continue; // s3cmd's own
      const content = await readFile(join(place.path, name));
      for (const secret of secrets) expect(content.includes(secret), name).toBe(false);
    }
  }

  const cases: [string, Record<string, string | undefined>, RegExp][] = [
    [
      "a wrong secret key",
      { AWS_SECRET_ACCESS_KEY: "0123456789abcdef0123456789abcdef01234567" },
      /SignatureDoesNotMatch/,
    ],
    ["an unknown access key", { AWS_ACCESS_KEY_ID: "NOBODY0123456789ABCD" }, /InvalidAccessKeyId/],
    ["no account at all", { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined }, /credentials/i],
  ];
  test.for(cases)("is refused with %s", async ([, change, message]) => {
    await using place = await objectOf(MIB);
    const env = { ...ENV, ...change };
    const said = await clone(["create", place.source, "disk.img", "-v"], { cwd: place.path, env });
    expectFailure(said, 1, message);
    expect(said.stderr).toContain(place.source);
    await expectNoSecret(place, said, [ceph.secretKey, ...Object.values(change).filter((text) => text !== undefined)]);
    expect([...(await hashesBelow(place.path)).keys()]).not.toContain("disk.img");
  });

  test("is refused where there is no such object, or no such bucket", async () => {
    await using place = await objectOf(MIB);
    const options = { cwd: place.path, env: ENV };
    expectFailure(await clone(["create", `${place.source}x`, "disk.img"], options), 1, /NoSuchKey/);
    expectFailure(await clone(["create", "s3://clone-test-none/disk.img", "disk.img"], options), 1, /NoSuchBucket/);
  });

  test("is refused where nobody listens", async () => {
    await using place = await objectOf(MIB);
    const env = { ...ENV, AWS_ENDPOINT_URL: "http://127.0.0.1:1" };
    expectFailure(
      await clone(["create", place.source, "disk.img"], { cwd: place.path, env }),
      1,
      /ECONNREFUSED|refused/,
    );
  });

  test("leaves no key in any file, in what is said, or in a process's arguments", async () => {
    await using place = await objectOf(8 * MIB);
    const options = { cwd: place.path, env: ENV };
    await cloneOk(["create", place.source, "disk.img", "-v"], options);
    const hydration = startClone(["hydrate", "disk.img", "-v", "--progress", "plain", "--rate", "1M"], options);
    await eventually("some is hydrated", async () => (await statusOf(place.path)).hydratedRegions > 0);
    const status = await clone(["status", "disk.img", "--json"], options);
    const title = await readFile(`/proc/${hydration.pid}/cmdline`, "utf8");
    hydration.child.kill("SIGTERM");
    const said = await hydration.done;
    expect(said.code, said.stderr).toBe(143);
    const secrets = [ceph.secretKey, ceph.accessKey];
    await expectNoSecret(place, said, secrets);
    await expectNoSecret(place, status, secrets);
    for (const secret of secrets) expect(title).not.toContain(secret);
  });
});

describe("an object that is written over while it is hydrated", () => {
  test("is refused, and nothing of the new one is taken for the old", async () => {
    await using place = await objectOf(64 * MIB);
    const options = { cwd: place.path, env: ENV };
    await cloneOk(["create", place.source, "disk.img"], options);
    const hydration = startClone(["hydrate", "disk.img", "--progress", "none", "--rate", "8M"], options);
    // A commit comes once a second: what came in the first is committed after two.
    await eventually("some is committed", async () => {
      const { hydratedRegions, regionSize } = await statusOf(place.path);
      return hydratedRegions * regionSize >= 16 * MIB;
    });
    const other = await randomFile(join(place.path, "object"), 64 * MIB);
    await place.bucket.put("disk.img", join(place.path, "object"));
    expectFailure(await hydration.done, 1, /changed/);

    // The next run does not go on either, unless it is told to.
    expectFailure(await clone(["hydrate", "disk.img"], options), 1, /changed/, /--accept-changed-source/);
    // What is hydrated is the old object's, whole regions of it, and nothing of the new one is anywhere.
    const dump = oneJson<Dump>(await cloneOk(["dump", "disk.img", "--json"], options));
    const copy = await readFile(join(place.path, "disk.img"));
    expect(dump.hydrated.length).toBeGreaterThan(0);
    expect(dump.hydrated).not.toEqual([[0, dump.regions]]);
    for (const [start, end] of dump.hydrated) {
      const [from, to] = [start * dump.regionSize, end * dump.regionSize];
      expect(
        Buffer.compare(copy.subarray(from, to), place.bytes.subarray(from, to)),
        `regions ${start} to ${end}`,
      ).toBe(0);
    }
    for (let offset = 0; offset < copy.length; offset += 4096) {
      const isNew = Buffer.compare(copy.subarray(offset, offset + 4096), other.subarray(offset, offset + 4096)) === 0;
      expect(isNew, `4096 bytes at ${offset}`).toBe(false);
    }
  });

  test("is refused by a server too, whose clients then read no byte of the new one", async () => {
    await using place = await objectOf(16 * MIB);
    const options = { cwd: place.path, env: ENV };
    await cloneOk(["create", place.source, "disk.img"], options);
    await using server = await startServe({ clone: "disk.img", args: ["--no-hydrate"], ...options });
    await using session = await NbdSession.connect({ socket: server.socket });
    const first = await session.read(0, 64 * KIB);
    expect(Buffer.compare(first, place.bytes.subarray(0, 64 * KIB))).toBe(0);
    await randomFile(join(place.path, "object"), 16 * MIB);
    await place.bucket.put("disk.img", join(place.path, "object"));
    await expect(session.read(8 * MIB, 64 * KIB)).rejects.toThrow(/^NBD error/);
  });
});

interface Dump {
  regions: number;
  regionSize: number;
  hydrated: [start: number, end: number][];
}

async function statusOf(cwd: string): Promise<ServedStatus> {
  return oneJson<ServedStatus>(await cloneOk(["status", "disk.img", "--json"], { cwd, env: ENV }));
}
