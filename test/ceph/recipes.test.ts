// The examples of clone-sources(7) and of the README that need a Ceph, or drivers of qemu that come with it, run as they are printed,
// but for ports, paths and keys; the others are run by test/interop/recipes-remote.test.ts.
import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, inject, test } from "vitest";
import { startIscsi, startSsh } from "../support/disk-protocols.ts";
import { holds, randomFile } from "../support/files.ts";
import { RbdImage } from "../support/rbd.ts";
import { RecipeShell } from "../support/recipe-shell.ts";
import { readmeRecipes, recipe } from "../support/recipes.ts";
import { newBucket } from "../support/s3-bucket.ts";
import { run, type Scratch, scratchDirectory } from "../support/scratch.ts";

const MIB = 2 ** 20;
const PAGE = "clone-sources.7";
const ceph = inject("ceph");

function readme(title: string): string[] {
  const found = readmeRecipes("Sources and destinations").get(title);
  if (found === undefined) throw new Error(`README.md has no example called "${title}"`);
  return found;
}

/** A directory with a disk.img. */
async function place(size = 4 * MIB): Promise<Scratch & { disk: Buffer }> {
  const scratch = await scratchDirectory();
  return { ...scratch, disk: await randomFile(join(scratch.path, "disk.img"), size) };
}

/** Nothing of whoever runs the tests. */
const NOBODY = [
  "unset AWS_PROFILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION AWS_DEFAULT_REGION",
  "unset AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3 http_proxy https_proxy",
  "export AWS_EC2_METADATA_DISABLED=true AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null",
];

describe("S3, in the examples", () => {
  /** Profile files of a user who has a profile `images`. */
  async function profile(cwd: string): Promise<string> {
    const keys = `aws_access_key_id = ${ceph.accessKey}\naws_secret_access_key = ${ceph.secretKey}\n`;
    await writeFile(join(cwd, "credentials"), `[images]\n${keys}`, { mode: 0o600 });
    await writeFile(join(cwd, "config"), `[profile images]\nendpoint_url = ${ceph.s3}\n`);
    return `export AWS_SHARED_CREDENTIALS_FILE=${cwd}/credentials AWS_CONFIG_FILE=${cwd}/config`;
  }

  async function shellFor({ path: cwd }: Scratch, before: readonly string[] = []): Promise<RecipeShell> {
    const bucket = await newBucket(ceph, cwd);
    await bucket.put("disk.img", join(cwd, "disk.img"));
    const replace = [
      ["http://localhost:7480", ceph.s3],
      ["s3://images/", `s3://${bucket.name}/`],
      ["AWS_ACCESS_KEY_ID=wonderland", `AWS_ACCESS_KEY_ID=${ceph.accessKey}`],
      ["AWS_SECRET_ACCESS_KEY=rabbit", `AWS_SECRET_ACCESS_KEY=${ceph.secretKey}`],
    ] as const;
    return new RecipeShell({ cwd, replace, before: [...NOBODY, ...before] });
  }

  test("of the man page are read with keys of the environment, and with those of a profile", async () => {
    const [byKeys = "", byProfile = "", ...more] = recipe(PAGE, "S3");
    expect(more).toEqual([]);
    await using scratch = await place();
    {
      await using shell = await shellFor(scratch);
      await shell.run(byKeys);
    }
    expect(await holds(join(scratch.path, "copy.img"), scratch.disk)).toBe(true);
    await using shell = await shellFor(scratch, [await profile(scratch.path)]);
    await shell.run(byProfile);
    expect(await holds(join(scratch.path, "copy2.img"), scratch.disk)).toBe(true);
  });

  test("of the README are read with a profile", async () => {
    await using scratch = await place();
    await using shell = await shellFor(scratch, [await profile(scratch.path)]);
    await shell.run(...readme("S3"));
    expect(await holds(join(scratch.path, "copy.img"), scratch.disk)).toBe(true);
  });
});

describe("Ceph RBD, in the examples", () => {
  /** Both to an image called as nothing else is: the pool is shared by all tests. */
  function names(image: string): [string, string][] {
    return [
      ["rbd/disk", `rbd/${image}`],
      ["rbd/copy", `rbd/${image}`],
      ["/etc/ceph/ceph.conf", ceph.conf],
    ];
  }

  test.for([
    ["the man page", recipe(PAGE, "Ceph RBD")] as const,
    ["the README", readme("Ceph, and what else qemu opens")] as const,
  ])("of %s is a source", async ([, texts]) => {
    await using scratch = await place();
    const image = await RbdImage.import(ceph, join(scratch.path, "disk.img"), scratch.disk.length);
    const before = [`export CEPH_CONF=${ceph.conf}`];
    await using shell = new RecipeShell({ cwd: scratch.path, replace: names(image.name), before });
    expect(await shell.run(...texts)).toContain("Finalized");
    expect(await holds(join(scratch.path, "copy.img"), scratch.disk)).toBe(true);
  });

  test("of the man page is a destination", async () => {
    await using scratch = await place();
    const name = `example-${process.pid}`;
    await intoCeph(scratch, name, recipe(PAGE, "A destination in Ceph"));
  });

  test("of the README is a destination", async () => {
    await using scratch = await place(8 * MIB);
    const image = await RbdImage.create(ceph, scratch.disk.length);
    await intoCeph(scratch, image.name, readme("Destinations"));
  });

  async function intoCeph({ path: cwd, disk }: Scratch & { disk: Buffer }, name: string, texts: readonly string[]) {
    {
      await using shell = new RecipeShell({ cwd, replace: names(name), before: [`export CEPH_CONF=${ceph.conf}`] });
      await shell.run(...texts);
    }
    await run("rbd", "-c", ceph.conf, "export", "--no-progress", `rbd/${name}`, join(cwd, "exported"));
    const exported = await readFile(join(cwd, "exported"));
    expect(Buffer.compare(exported.subarray(0, disk.length), disk)).toBe(0);
    expect(exported.subarray(disk.length).every((byte) => byte === 0)).toBe(true);
    expect(existsSync(join(cwd, "rbd.clone"))).toBe(false);
  }
});

describe("ssh and iSCSI, in the examples", () => {
  test("are sources, through qemu's drivers", async () => {
    await using scratch = await place();
    const { path: cwd, disk } = scratch;
    await using ssh = await startSsh(cwd);
    await writeFile(join(cwd, "host.sha256"), ssh.fingerprint);
    const target = { target: "iqn.2026-01.example:disk", file: join(cwd, "disk.img") };
    await using iscsi = await startIscsi(cwd, target);
    const replace = [
      ["localhost:2222", `localhost:${ssh.port}`],
      ["localhost:3260", `localhost:${iscsi.port}`],
      ["/srv/disk.img", `${cwd}/disk.img`],
    ] as const;
    const texts = recipe(PAGE, "ssh and iSCSI");
    expect(texts).toHaveLength(2);
    await using shell = new RecipeShell({ cwd, replace, before: ['eval "$(ssh-agent)" > agent'] });
    await shell.run(...texts);
    for (const name of ["copy.img", "copy2.img"]) expect(await holds(join(cwd, name), disk), name).toBe(true);
  });

  test("are no sources where the server's key is another one", async () => {
    await using scratch = await place();
    const { path: cwd } = scratch;
    await using ssh = await startSsh(cwd);
    await writeFile(
      join(cwd, "host.sha256"),
      ssh.fingerprint.replace(/^./, (digit) => (digit === "0" ? "1" : "0")),
    );
    const replace = [["localhost:2222/srv", `localhost:${ssh.port}${cwd}`]] as const;
    await using shell = new RecipeShell({ cwd, replace, before: ['eval "$(ssh-agent)" > agent'] });
    const [bySsh = ""] = recipe(PAGE, "ssh and iSCSI");
    await expect(shell.run(bySsh)).rejects.toThrow(/does not match host_key_check/);
    expect(existsSync(join(cwd, "copy.img"))).toBe(false);
  });
});
