// Other people's NBD clients against the server, over a device in memory in this process: what they can do with it, and
// that they find the bytes that are there. The same clients against a clone have tests of their own.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { certificates, noOpenSsl } from "../support/certificates.ts";
import { testServer, until } from "../support/nbd-server.ts";
import { contentBytes } from "../support/random.ts";
import { hasProgram, run, scratchDirectory, withReason } from "../support/scratch.ts";
import { ServedMemory } from "../support/served-devices.ts";

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;

/** Why a program cannot be used here, or undefined where it can. */
function lacking(...programs: string[]): string | undefined {
  const missing = programs.filter((program) => !hasProgram(program));
  return missing.length === 0 ? undefined : `needs ${missing.join(" and ")}`;
}

/** A server of 16 MiB: data, a hole of 8 MiB, data. */
function server(immediate = true) {
  const hydrated = { name: "x-clone:hydrated", runs: (_: number, length: number) => [{ length, flags: 1 }] };
  const device = new ServedMemory(SIZE, { immediate, contexts: [hydrated] });
  const data = contentBytes(4 * MIB);
  device.bytes.set(data, 0);
  device.bytes.set(data, 12 * MIB);
  return testServer({ device });
}

describe.for([true, false])("Clients of a server that answers at once: %s", (immediate) => {
  const nbdinfo = lacking("nbdinfo");
  test.skipIf(nbdinfo)(withReason("nbdinfo sees what the server can do, and its map", nbdinfo), async () => {
    await using served = await server(immediate);
    const told = JSON.parse(await run("nbdinfo", "--json", served.uri));
    expect(told).toMatchObject({ protocol: "newstyle-fixed", TLS: false, structured: true });
    expect(told.exports[0]).toMatchObject({
      "export-name": "disk",
      description: "a test",
      contexts: ["base:allocation", "x-clone:hydrated"],
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_fast_zero: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 1,
      block_size_preferred: 4096,
      block_size_maximum: 32 * MIB,
      "export-size": SIZE,
    });
    const map = JSON.parse(await run("nbdinfo", "--json", "--map", served.uri));
    expect(map).toMatchObject([
      { offset: 0, length: 4 * MIB, type: 0 },
      { offset: 4 * MIB, length: 8 * MIB, type: 3 },
      { offset: 12 * MIB, length: 4 * MIB, type: 0 },
    ]);
    const hydrated = JSON.parse(await run("nbdinfo", "--json", "--map=x-clone:hydrated", served.uri));
    expect(hydrated).toMatchObject([{ offset: 0, length: SIZE, type: 1 }]);
    const list = JSON.parse(await run("nbdinfo", "--json", "--list", served.uri));
    expect(list.exports.length).toBe(1);
    expect(await run("nbdinfo", "--size", served.uri)).toBe(`${SIZE}\n`);
  });

  const nbdcopy = lacking("nbdcopy");
  test.skipIf(nbdcopy)(withReason("nbdcopy copies out and in, over several connections", nbdcopy), async () => {
    await using served = await server(immediate);
    await using directory = await scratchDirectory();
    const file = join(directory.path, "copy");
    await run("nbdcopy", served.uri, file);
    expect((await readFile(file)).equals(served.device.bytes)).toBe(true);
    const content = contentBytes(SIZE);
    content.fill(0, 3 * MIB, 5 * MIB);
    await writeFile(file, content);
    await run("nbdcopy", "--flush", "--requests=64", "--connections=4", file, served.uri);
    expect(served.device.bytes.equals(content)).toBe(true);
    expect(served.device.log).toContain("flush 0 0");
    expect(served.warnings).toEqual([]);
  });

  const qemu = lacking("qemu-img", "qemu-io");
  test.skipIf(qemu)(withReason("qemu-img sees, maps, compares and converts it, both ways", qemu), async () => {
    await using served = await server(immediate);
    await using directory = await scratchDirectory();
    const [raw, qcow2] = [join(directory.path, "raw"), join(directory.path, "qcow2")];
    const info = JSON.parse(await run("qemu-img", "info", "--output=json", served.uri));
    expect(info).toMatchObject({ "virtual-size": SIZE });
    const map = JSON.parse(await run("qemu-img", "map", "--output=json", served.uri));
    expect(map).toMatchObject([
      { start: 0, length: 4 * MIB, zero: false, data: true },
      { start: 4 * MIB, length: 8 * MIB, zero: true, data: false },
      { start: 12 * MIB, length: 4 * MIB, zero: false, data: true },
    ]);
    await run("qemu-img", "convert", "-f", "raw", "-O", "raw", served.uri, raw);
    expect((await readFile(raw)).equals(served.device.bytes)).toBe(true);
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", served.uri, qcow2);
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, served.uri);
    const before = Buffer.from(served.device.bytes);
    served.device.bytes.fill(0x55);
    await run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, served.uri);
    expect(served.device.bytes.equals(before)).toBe(true);
    expect(served.warnings).toEqual([]);
  });

  test.skipIf(qemu)(
    withReason("qemu-io reads, writes, zeroes, discards and flushes, unaligned too", qemu),
    async () => {
      await using served = await server(immediate);
      const commands = [
        "write -P 0xab 1M 64k",
        "read -P 0xab 1M 64k",
        "write -P 0xcd 1000 3001",
        "read -P 0xcd 1000 3001",
        "write -f -P 0xef 2M 4k",
        "write -z 1M 4k",
        "read -P 0 1M 4k",
        "write -z -u 8M 1M",
        "write -z -n 9M 1M",
        "discard 12M 1M",
        "flush",
        "aio_write -P 1 3M 1M",
        "aio_write -P 2 4M 1M",
        "aio_read -P 0xab 1028k 60k",
        "aio_flush",
        "read -P 1 3M 1M",
        "read -P 2 4M 1M",
      ];
      const output = await run(
        "qemu-io",
        "-t",
        "writeback",
        "-f",
        "raw",
        ...commands.flatMap((command) => ["-c", command]),
        served.uri,
      );
      expect(output).not.toMatch(/fail|error|invalid/i);
      const verbs = new Set(served.device.log.map((line) => line.replace(/ \d+ \d+/, "")));
      for (const verb of ["write fua", "zero no-hole", "zero", "zero fast no-hole", "discard", "flush"])
        expect(verbs).toContain(verb);
      expect(served.warnings).toEqual([]);
    },
  );

  const fio = lacking("fio");
  test.skipIf(fio)(withReason("fio finds what it wrote, with several jobs at once", fio), async () => {
    await using served = await server(immediate);
    await using directory = await scratchDirectory();
    const common = [
      "--ioengine=nbd",
      `--uri=${served.uri}`,
      "--iodepth=16",
      `--size=${4 * MIB}`,
      "--offset_increment=4M",
    ];
    const verify = ["--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fsync=64"];
    for (const bs of ["4k", "512-300k"]) {
      const size = bs.includes("-") ? `--bsrange=${bs}` : `--bs=${bs}`;
      const state = ["--verify_state_save=0", `--aux-path=${directory.path}`];
      await run("fio", "--name=verify", "--numjobs=4", "--thread", ...common, ...verify, ...state, size);
    }
    await until(() => served.server.connections === 0);
    expect(served.warnings).toEqual([]);
    expect(served.server.counters.commands.flush.requests).toBeGreaterThan(0);
  });
});

const nbdClient = lacking("nbd-client");
test.skipIf(nbdClient)(withReason("nbd-client lists the exports", nbdClient), async () => {
  await using served = await server();
  await served.server.listen({ host: "127.0.0.1", port: 0 });
  const { port } = new URL((served.server.uris()[1] as string).replace("nbd:", "http:"));
  expect(await run("nbd-client", "-l", "127.0.0.1", port)).toMatch(/^disk/m);
});

describe.skipIf(noOpenSsl)(withReason("Clients over TLS", noOpenSsl), () => {
  const libnbd = lacking("nbdinfo", "nbdcopy");

  test.skipIf(libnbd)(withReason("libnbd, with certificates of both", libnbd), async () => {
    await using pki = await certificates();
    const credentials = { kind: "certificates", ...pki.server, authorities: pki.authority, verifyPeer: true } as const;
    await using served = await testServer({ device: new ServedMemory(SIZE), tls: { mode: "require", credentials } });
    await served.server.listen({ host: "127.0.0.1", port: 0 });
    const uri = (served.server.uris()[1] as string).replace("127.0.0.1", "localhost");
    served.device.bytes.set(contentBytes(SIZE));
    const told = JSON.parse(await run("nbdinfo", "--json", `${uri}?tls-certificates=${pki.path}`));
    expect(told).toMatchObject({ TLS: true, structured: true });
    await using directory = await scratchDirectory();
    const file = join(directory.path, "copy");
    await run("nbdcopy", `${uri}?tls-certificates=${pki.path}`, file);
    expect((await readFile(file)).equals(served.device.bytes)).toBe(true);
    await expect(run("nbdinfo", uri.replace("nbds:", "nbd:"))).rejects.toThrow();
    await writeFile(join(directory.path, "ca-cert.pem"), pki.authority); // and no certificate of its own
    await expect(run("nbdinfo", `${uri}?tls-certificates=${directory.path}`)).rejects.toThrow();
  });

  const psktool = libnbd ?? lacking("psktool");
  test.skipIf(psktool)(withReason("libnbd, with a key shared by psktool", psktool), async () => {
    await using directory = await scratchDirectory();
    const file = join(directory.path, "keys.psk");
    await run("psktool", "-u", "alice", "-p", file);
    const { parsePskFile } = await import("../../src/nbd/psk-file.ts");
    const keys = parsePskFile(await readFile(file, "utf8"), file);
    const credentials = { kind: "psk", keyOf: (user: string) => keys.get(user) } as const;
    await using served = await testServer({ device: new ServedMemory(SIZE), tls: { mode: "require", credentials } });
    served.device.bytes.set(contentBytes(SIZE));
    const uri = served.uri.replace("unix://", "unix://alice@");
    const copy = join(directory.path, "copy");
    await run("nbdcopy", `${uri}&tls-psk-file=${file}`, copy);
    expect((await readFile(copy)).equals(served.device.bytes)).toBe(true);
    await expect(run("nbdinfo", `${uri.replace("alice", "bob")}&tls-psk-file=${file}`)).rejects.toThrow();
  });

  const qemu = lacking("qemu-img");
  test.skipIf(qemu)(withReason("qemu, with certificates", qemu), async () => {
    await using pki = await certificates();
    const credentials = { kind: "certificates", ...pki.server, authorities: pki.authority, verifyPeer: true } as const;
    await using served = await testServer({ device: new ServedMemory(SIZE), tls: { mode: "on", credentials } });
    await served.server.listen({ host: "127.0.0.1", port: 0 });
    const { port } = new URL((served.server.uris()[1] as string).replace("nbd:", "http:"));
    const secret = `tls-creds-x509,id=tls,endpoint=client,dir=${pki.path}`;
    const image = `driver=nbd,host=localhost,port=${port},tls-creds=tls`;
    const told = await run("qemu-img", "info", "--output=json", "--object", secret, "--image-opts", image);
    expect(JSON.parse(told)).toMatchObject({ "virtual-size": SIZE });
  });
});
