// Whom a client takes for its server in TLS, whatever its environment says.
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { createServer, type TlsOptions } from "node:tls";
import { afterEach, describe, expect, test, vi } from "vitest";
import { secure, tlsSettings } from "../../../src/nbd/client/client-tls.ts";
import type { NbdTls } from "../../../src/nbd/client/nbd-uri.ts";
import { PSK_CIPHERS } from "../../../src/nbd/tls-upgrade.ts";
import { certificates, noOpenSsl } from "../../support/certificates.ts";
import { scratchDirectory, withReason } from "../../support/scratch.ts";

const KEY = "00112233445566778899aabbccddeeff";

afterEach(() => vi.unstubAllEnvs());

/** Does the client's part of TLS with a server that has these options; resolves to why not, or undefined. */
async function refusal(options: TlsOptions, tls: (directory: string) => NbdTls): Promise<string | undefined> {
  await using place = await scratchDirectory();
  await writeFile(join(place.path, "keys.psk"), `alice:${KEY}\n`, { mode: 0o600 });
  const server = createServer(options, (socket) => socket.on("error", () => {}));
  server.on("tlsClientError", () => {});
  const path = join(place.path, "tls.sock");
  server.listen(path);
  await once(server, "listening");
  try {
    const socket = connect(path);
    await once(socket, "connect");
    const settings = await tlsSettings(tls(place.path), { path });
    const secured = await secure(socket, settings).catch((error: Error) => error.message);
    if (typeof secured === "string") return secured;
    secured.on("error", () => {});
    secured.destroy();
    return undefined;
  } finally {
    server.close();
  }
}

describe("A client that knows a key", () => {
  const byKey = (directory: string): NbdTls => ({
    type: "psk",
    verifyPeer: true,
    username: "alice",
    pskFile: join(directory, "keys.psk"),
  });

  test("takes a server that knows it, too", async () => {
    const pskCallback = (): Buffer => Buffer.from(KEY, "hex");
    expect(await refusal({ ciphers: PSK_CIPHERS, pskCallback }, byKey)).toBeUndefined();
  });

  test.skipIf(noOpenSsl !== undefined).each(["0", "1"])(
    withReason("refuses one that shows a certificate instead, also with NODE_TLS_REJECT_UNAUTHORIZED=%s", noOpenSsl),
    async (value) => {
      vi.stubEnv("NODE_TLS_REJECT_UNAUTHORIZED", value);
      await using pki = await certificates();
      const { certificate: cert, key } = pki.server;
      expect(await refusal({ cert, key }, byKey)).toMatch(/^TLS failed: /);
    },
  );
});
