/** Certificates for tests of TLS, made by OpenSSL, in a directory laid out as qemu, nbdkit and libnbd want it. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { hasProgram, run, scratchDirectory } from "./scratch.ts";

/** Why no certificates can be made here, or undefined where they can. */
export const noOpenSsl: string | undefined = hasProgram("openssl") ? undefined : "needs openssl";

/**
 * An authority, and a server and a client that it vouches for: `ca-cert.pem`, `server-cert.pem`, `client-key.pem`, …; `names`
 * is what they are called, as `DNS:*.example.org,IP:127.0.0.1`.
 */
export async function certificates(names = "DNS:localhost,IP:127.0.0.1") {
  const directory = await scratchDirectory();
  const at = (name: string): string => join(directory.path, name);
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
  const ca = ["-x509", "-days", "30", "-subj", "/CN=Test authority", "-out", at("ca-cert.pem")];
  await run("openssl", "req", ...key, at("ca-key.pem"), ...ca);
  await writeFile(at("extensions"), `subjectAltName=${names}\n`);
  for (const who of ["server", "client"]) {
    await run("openssl", "req", ...key, at(`${who}-key.pem`), "-subj", "/CN=localhost", "-out", at(`${who}.csr`));
    const signed = ["-CA", at("ca-cert.pem"), "-CAkey", at("ca-key.pem"), "-CAcreateserial", "-days", "30"];
    const files = ["-in", at(`${who}.csr`), "-out", at(`${who}-cert.pem`), "-extfile", at("extensions")];
    await run("openssl", "x509", "-req", ...signed, ...files);
  }
  const [authority, serverCert, serverKey, clientCert, clientKey] = await Promise.all(
    ["ca-cert", "server-cert", "server-key", "client-cert", "client-key"].map((n) => readFile(at(`${n}.pem`), "utf8")),
  );
  return {
    path: directory.path,
    authority: authority as string,
    server: { certificate: serverCert as string, key: serverKey as string },
    client: { cert: clientCert as string, key: clientKey as string },
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}
