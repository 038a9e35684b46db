// The examples of clone-sources(7), and of the README's "Sources and destinations", run as they are printed, but for ports and
// paths: in a directory with a disk.img, which every copy has to equal. Those with Ceph, ssh and iSCSI are run by test/ceph/recipes.test.ts.
import { existsSync } from "node:fs";
import { cp, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect } from "vitest";
import { certificates } from "../support/certificates.ts";
import { holds, randomFile } from "../support/files.ts";
import { type Program, testWith } from "../support/needs.ts";
import { nbdPort, nbdServer, type Scene, webServer } from "../support/recipe-servers.ts";
import { RecipeShell } from "../support/recipe-shell.ts";
import { readmeRecipes, recipesOf } from "../support/recipes.ts";
import { eventually } from "../support/run-clone.ts";
import { run, scratchDirectory } from "../support/scratch.ts";
import { freePort } from "../support/source-servers.ts";

const MIB = 1024 * 1024;
const PAGE = "clone-sources.7";
const SECTION = "Sources and destinations";

/** How the examples of a subsection are run. */
interface Example {
  programs: Program[];
  scene: (cwd: string) => Promise<Scene>;
  /** Looks at what is there in the end; by default each copy*.img that the text names holds the disk. */
  check?: (cwd: string, disk: Buffer, shell: RecipeShell) => Promise<void>;
}

const NOTHING = async (): Promise<Scene> => ({ replace: [] });

async function atPort(): Promise<Scene> {
  return { replace: nbdPort(await freePort()) };
}

/** The same disk as a qcow2 image. */
async function qcow2(cwd: string): Promise<void> {
  await run("qemu-img", "convert", "-q", "-O", "qcow2", join(cwd, "disk.img"), join(cwd, "disk.qcow2"));
}

async function compressed(cwd: string): Promise<Scene> {
  // In blocks: without them nothing but the whole can be unpacked, which nbdkit refuses.
  await run("xz", "--keep", "--block-size=1MiB", join(cwd, "disk.img"));
  return { replace: [] };
}

/** What a client of a clone that is being served reads. */
async function readsAt(shell: RecipeShell, socket: string, cwd: string, disk: Buffer): Promise<void> {
  await shell.run(`nbdcopy 'nbd+unix:///?socket=${socket}' ${socket}.read`);
  expect(await holds(join(cwd, `${socket}.read`), disk)).toBe(true);
}

const PAGE_EXAMPLES: Record<string, Example> = {
  "An NBD server": {
    programs: ["nbdkit", "nbdcopy"],
    scene: atPort,
    async check(cwd, disk, shell) {
      expect(await holds(join(cwd, "copy.img"), disk)).toBe(true);
      await readsAt(shell, "disk2.sock", cwd, disk);
    },
  },
  "An export of qemu-nbd, on a Unix socket": {
    programs: ["qemu-nbd", "qemu-img"],
    async scene(cwd) {
      await qcow2(cwd);
      return { replace: [] };
    },
  },
  "An export of nbd-server": { programs: ["nbd-server"], scene: nbdServer },
  "NBD with certificates": {
    programs: ["nbdkit", "openssl"],
    async scene(cwd) {
      await using keys = await certificates();
      await cp(keys.path, join(cwd, "pki"), { recursive: true });
      return await atPort();
    },
  },
  "NBD with a key": { programs: ["nbdkit", "psktool"], scene: atPort },
  "A web server": { programs: ["nginx", "openssl"], scene: webServer },
  "An image in another format": {
    programs: ["qemu-img", "qemu-nbd", "nginx", "openssl"],
    async scene(cwd) {
      await qcow2(cwd);
      return await webServer(cwd);
    },
    async check(cwd, disk) {
      for (const name of ["copy.img", "copy2.img", "copy3.img"]) expect(await holds(join(cwd, name), disk)).toBe(true);
      expect(await holds(join(cwd, "copy.qcow2"), await readFile(join(cwd, "disk.qcow2")))).toBe(true);
    },
  },
  "A program": { programs: ["nbdkit", "xz"], scene: compressed },
  "A destination on a server": {
    programs: ["qemu-img", "qemu-nbd"],
    scene: NOTHING,
    async check(cwd, _, shell) {
      await shell[Symbol.asyncDispose](); // qemu-nbd holds a lock on it
      const [image, disk] = [join(cwd, "new.qcow2"), join(cwd, "disk.img")];
      expect(await run("qemu-img", "compare", "-F", "qcow2", "-f", "raw", disk, image)).toContain("identical");
      expect(existsSync(join(cwd, "new.clone"))).toBe(false);
    },
  },
};

const README_EXAMPLES: Record<string, Example> = {
  NBD: { programs: ["nbd-server"], scene: nbdServer },
  "HTTP and HTTPS": {
    programs: ["nginx", "openssl"],
    async scene(cwd) {
      await writeFile(join(cwd, "headers"), "Authorization: Bearer wonderland\n", { mode: 0o600 });
      return { ...(await webServer(cwd)), before: ["export SSL_CERT_FILE=ca-cert.pem"] };
    },
  },
  "qcow2, VMDK, VHDX, VDI, …": {
    programs: ["qemu-img", "qemu-nbd"],
    async scene(cwd) {
      await qcow2(cwd);
      return { replace: [] };
    },
  },
  "A program": { programs: ["nbdkit", "xz"], scene: compressed },
  "Far away": {
    programs: ["nbd-server", "nbdcopy"],
    scene: nbdServer,
    async check(cwd, disk, shell) {
      await readsAt(shell, "second.sock", cwd, disk);
    },
  },
};

/** Their examples need a Ceph, or drivers of qemu that come with it. */
const OF_CEPH = {
  page: ["S3", "Ceph RBD", "ssh and iSCSI", "A destination in Ceph"],
  readme: ["S3", "Ceph, and what else qemu opens", "Destinations"],
};

async function runExample({ scene, check }: Example, texts: readonly string[]): Promise<void> {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  const disk = await randomFile(join(cwd, "disk.img"), 4 * MIB);
  expect(texts).not.toEqual([]);
  const { servers = [], daemon, ...where } = await scene(cwd);
  try {
    await using shell = new RecipeShell({ cwd, ...where });
    if (daemon !== undefined) {
      await shell.run(daemon.start);
      await eventually("the server is ready", daemon.isReady);
    }
    await runAll(shell, texts, cwd);
    if (check !== undefined) return await check(cwd, disk, shell);
    const copies = (await readdir(cwd)).filter((name) => /^copy\d*\.img/.test(name)).sort();
    expect(copies).toEqual([...new Set(texts.join("\n").match(/\bcopy\d*\.img\b/g))].sort()); // and no metadata
    for (const copy of copies) expect(await holds(join(cwd, copy), disk), copy).toBe(true);
  } finally {
    for (const server of servers) await server[Symbol.asyncDispose]();
  }
}

/** All texts as one script. Between two runs of a boot the first has to be over. */
async function runAll(shell: RecipeShell, texts: readonly string[], cwd: string): Promise<void> {
  if (!texts.some((text) => text.includes("--record-trace"))) return void (await shell.run(...texts));
  const [first = "", second = ""] = texts;
  await shell.run(first, "nbdcopy 'nbd+unix:///?socket=first.sock' first.sock.read", "kill $!", "wait $!");
  expect(await readFile(join(cwd, "boot.trace"), "utf8")).toMatch(/^\d+ \d+$/m);
  await shell.run(second);
}

describe("clone-sources(7)", () => {
  const recipes = recipesOf(PAGE);
  for (const [title, example] of Object.entries(PAGE_EXAMPLES)) {
    testWith({ programs: example.programs }, title, async () => await runExample(example, recipes.get(title) ?? []));
  }

  testWith({ programs: [] }, "has no example that is run nowhere", async () => {
    const titles = [...recipes].filter(([, texts]) => texts.length > 0).map(([title]) => title);
    expect(titles.sort()).toEqual([...Object.keys(PAGE_EXAMPLES), ...OF_CEPH.page].sort());
  });
});

describe(`"${SECTION}" of the README`, () => {
  const recipes = readmeRecipes(SECTION);
  for (const [title, example] of Object.entries(README_EXAMPLES)) {
    testWith({ programs: example.programs }, title, async () => await runExample(example, recipes.get(title) ?? []));
  }

  testWith({ programs: [] }, "has no example that is run nowhere", async () => {
    expect([...recipes.keys()].sort()).toEqual([...Object.keys(README_EXAMPLES), ...OF_CEPH.readme].sort());
    for (const [title, texts] of recipes) expect(texts, title).not.toEqual([]);
  });
});
