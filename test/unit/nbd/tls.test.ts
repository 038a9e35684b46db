// STARTTLS with certificates and with shared keys: who gets in, who does not, and that nothing said in the clear counts
// as said in TLS.
import { once } from "node:events";
import type { Socket } from "node:net";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { encodeContextQueries, encodeOption } from "../../../src/nbd/option-codec.ts";
import { Command, Option, OptionReply, TransmissionFlag } from "../../../src/nbd/protocol.ts";
import { NbdServer } from "../../../src/nbd/server.ts";
import { DEFAULT_LIMITS } from "../../../src/nbd/server-limits.ts";
import type { TlsCredentials } from "../../../src/nbd/tls-upgrade.ts";
import { certificates, noOpenSsl } from "../../support/certificates.ts";
import { ManualClock } from "../../support/manual-clock.ts";
import { NbdClient, requestBytes } from "../../support/nbd-client.ts";
import { testServer, until } from "../../support/nbd-server.ts";
import { contentBytes } from "../../support/random.ts";
import { withReason } from "../../support/scratch.ts";
import { ServedMemory } from "../../support/served-devices.ts";

type Pki = Awaited<ReturnType<typeof certificates>>;
let pki: Pki;
let otherPki: Pki;

const KEY = contentBytes(32);
const PSK: TlsCredentials = { kind: "psk", keyOf: (user) => (user === "alice" ? KEY : undefined) };

function x509(verifyPeer = false): TlsCredentials {
  return { kind: "certificates", ...pki.server, authorities: pki.authority, verifyPeer };
}

function server(credentials: TlsCredentials, mode: "on" | "require" = "require", clock?: ManualClock) {
  const device = new ServedMemory(4 * 1024 * 1024);
  return testServer({ device, tls: { mode, credentials }, ...(clock === undefined ? {} : { clock }) });
}

/** Sends STARTTLS and takes TLS on. Rejects where the server wants no such client. */
async function startTls(client: NbdClient, options: ConnectionOptions): Promise<void> {
  expect((await client.option(Option.startTls)).map(({ type }) => type)).toEqual([OptionReply.ack]);
  client.detach();
  const secure = connectTls({ socket: client.socket as Socket, servername: "localhost", ...options });
  await once(secure, "secureConnect");
  client.replaceStream(secure);
}

/** A client that is as far as the transmission phase, over TLS. */
async function secureClient(address: { path: string }, options: ConnectionOptions): Promise<NbdClient> {
  const client = await NbdClient.connect(address);
  await client.greet();
  await startTls(client, options);
  await client.negotiate({});
  return client;
}

const asAlice: ConnectionOptions = {
  pskCallback: () => ({ identity: "alice", psk: KEY }),
  ciphers: "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:TLS_AES_128_GCM_SHA256",
  checkServerIdentity: () => undefined,
};

describe.skipIf(noOpenSsl)(withReason("TLS", noOpenSsl), () => {
  beforeAll(async () => {
    pki = await certificates();
    otherPki = await certificates();
  });
  afterAll(async () => {
    await pki?.[Symbol.asyncDispose]();
    await otherPki?.[Symbol.asyncDispose]();
  });

  const KINDS = [
    ["certificates, TLS 1.3", () => x509(), () => ({ ca: pki.authority, minVersion: "TLSv1.3" })],
    ["certificates, TLS 1.2", () => x509(), () => ({ ca: pki.authority, maxVersion: "TLSv1.2" })],
    ["certificates of both", () => x509(true), () => ({ ca: pki.authority, ...pki.client })],
    ["a shared key", () => PSK, () => asAlice],
    ["a shared key, TLS 1.2", () => PSK, () => ({ ...asAlice, maxVersion: "TLSv1.2" })],
  ] as [string, () => TlsCredentials, () => ConnectionOptions][];

  test.for(KINDS)("with %s carries requests of every size", async ([, credentials, options]) => {
    await using served = await server(credentials());
    await using client = await secureClient(served, options());
    for (const length of [1, 4096, 65536, 256 * 1024, 1024 * 1024 + 1]) {
      const data = contentBytes(length);
      expect((await client.write(5, data)).error).toBe(0);
      expect((await client.read(5, length)).data.equals(data)).toBe(true);
    }
    const data = contentBytes(4096);
    const writes = Array.from({ length: 300 }, (_, cookie) =>
      requestBytes({ type: Command.write, offset: cookie * 4096, data, cookie }),
    );
    client.send(Buffer.concat(writes));
    const cookies = new Set<number>();
    for (let index = 0; index < 300; index++) cookies.add((await client.reply()).cookie);
    expect(cookies.size).toBe(300);
    client.post({ type: Command.disconnect });
    expect((await client.closed()).length).toBe(0);
    expect(served.warnings).toEqual([]);
  });

  test("a server that speaks it serves clients in the clear just as well, where it does not insist", async () => {
    await using served = await server(x509(), "on");
    await using client = await NbdClient.go(served);
    for (const length of [1, 4096, 256 * 1024, 1024 * 1024 + 1]) {
      const data = contentBytes(length);
      expect((await client.write(5, data)).error).toBe(0);
      expect((await client.read(5, length)).data.equals(data)).toBe(true);
    }
    await using secure = await secureClient(served, { ca: pki.authority });
    expect((await secure.read(0, 512)).error).toBe(0);
  });

  test.for([
    ["certificate", () => x509(true), () => ({ ca: pki.authority })],
    ["certificate of the right authority", () => x509(true), () => ({ ca: pki.authority, ...otherPki.client })],
    ["known user", () => PSK, () => ({ ...asAlice, pskCallback: () => ({ identity: "bob", psk: KEY }) })],
    ["right key", () => PSK, () => ({ ...asAlice, pskCallback: () => ({ identity: "alice", psk: contentBytes(32) }) })],
    ["TLS newer than 1.1", () => x509(), () => ({ ca: pki.authority, minVersion: "TLSv1", maxVersion: "TLSv1.1" })],
  ] as [string, () => TlsCredentials, () => ConnectionOptions][])(
    "a client without a %s does not get in, and does not disturb another",
    async ([, credentials, options]) => {
      await using served = await server(credentials());
      const good = credentials().kind === "psk" ? asAlice : { ca: pki.authority, ...pki.client };
      await using other = await secureClient(served, good);
      await using client = await NbdClient.connect(served);
      await client.greet();
      // With TLS 1.3 the client believes itself connected before the server has judged it.
      const failed = startTls(client, options()).then(() => client.option(Option.list));
      await expect(failed).rejects.toThrow();
      await until(() => served.server.connections === 1);
      expect(served.warnings).toEqual([expect.stringMatching(/^a client was disconnected: TLS failed: [^\n]+$/)]);
      expect((await other.read(0, 512)).error).toBe(0);
    },
  );

  test("what was negotiated before is forgotten", async () => {
    await using served = await server(x509(), "on");
    await using client = await NbdClient.connect(served);
    await client.greet();
    await client.option(Option.structuredReply);
    const queries = encodeContextQueries("", ["base:allocation"]);
    expect((await client.option(Option.setMetaContext, queries)).length).toBe(2);
    await startTls(client, { ca: pki.authority });
    const types = (await client.option(Option.setMetaContext, queries)).map(({ type }) => type);
    expect(types).toEqual([OptionReply.errInvalid]);
    expect((await client.option(Option.startTls)).map(({ type }) => type)).toEqual([OptionReply.errInvalid]);
    await client.negotiate({ structured: false });
    expect(Math.floor(client.flags / TransmissionFlag.sendDf) % 2).toBe(0);
    expect((await client.read(0, 8)).chunks).toEqual([]);
  });

  // CVE-2021-3716: a man in the middle puts options before the client's, to be obeyed as if they came over TLS.
  test("a client that says more in the clear behind STARTTLS is dropped, and none of it is obeyed", async () => {
    await using served = await server(x509());
    const startTlsOption = encodeOption(Option.startTls);
    for (const more of [Buffer.from([0]), encodeOption(Option.list), encodeOption(Option.abort)]) {
      await using client = await NbdClient.connect(served);
      await client.greet();
      client.send(Buffer.concat([startTlsOption, more]));
      expect((await client.closed()).length).toBe(0);
    }
    await using later = await NbdClient.connect(served);
    await later.greet();
    later.send(startTlsOption);
    await new Promise((resolve) => setTimeout(resolve, 5));
    later.send(encodeOption(Option.list));
    const said = await later.closed();
    expect(said.subarray(0, 20).toString("hex")).toBe(`0003e889045565a9${"00000005"}${"00000001"}${"00000000"}`);
    expect(said.includes("disk")).toBe(false);
    expect(served.warnings.length).toBe(4);
  });

  test("a client that never begins it is dropped in time", async () => {
    const clock = new ManualClock();
    await using served = await server(x509(), "require", clock);
    await using client = await NbdClient.connect(served);
    await client.greet();
    await client.option(Option.startTls);
    await clock.advance(DEFAULT_LIMITS.handshakeMs);
    await client.closed();
    await until(() => served.server.connections === 0);
    expect(served.warnings).toEqual(["a client was disconnected: its handshake took longer than 15 s"]);
  });

  test("a client that goes away while it begins leaves nothing behind", async () => {
    await using served = await server(x509());
    for (const bytes of [Buffer.alloc(0), Buffer.from("160301", "hex")]) {
      await using client = await NbdClient.connect(served);
      await client.greet();
      await client.option(Option.startTls);
      client.send(bytes);
      client.socket.destroy();
    }
    await until(() => served.server.connections === 0);
  });

  test("credentials that cannot work are refused when the server is made", () => {
    const make = (credentials?: TlsCredentials) => () =>
      new NbdServer({ exports: [], tls: { mode: "on", ...(credentials === undefined ? {} : { credentials }) } });
    const { certificate, key } = pki.server;
    expect(make()).toThrow(TypeError);
    expect(make({ kind: "certificates", certificate, key: otherPki.server.key, verifyPeer: false })).toThrow(
      UsageError,
    );
    expect(make({ kind: "certificates", certificate: "nonsense", key, verifyPeer: false })).toThrow(UsageError);
    expect(make({ kind: "certificates", certificate, key, verifyPeer: true })).toThrow(UsageError);
  });
});
