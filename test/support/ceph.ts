/**
 * The Ceph that the tests under test/ceph share: started before the first of them by `test/ceph/lab`, and ended after the last,
 * or when this process is gone, whatever ended it. Where a test failed, the logs stay.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { TestProject } from "vitest/node";
import { certificates } from "./certificates.ts";

const LAB = fileURLToPath(new URL("../ceph/lab", import.meta.url));
/** The domain whose subdomains are buckets: Amazon's own, so that what works with Amazon's addresses can be tried here. */
const DNS_NAME = "s3.us-east-1.amazonaws.com";

/** What a client of this Ceph needs. */
export interface Ceph {
  /** Configuration file for RBD; names the keyring. */
  conf: string;
  /** URL of the gateway, without a path: buckets are paths of it. */
  s3: string;
  /** `HOST:PORT` of the gateway's TLS, which calls itself `dnsName` and subdomains of it. */
  s3Tls: string;
  dnsName: string;
  /** File with the certificate of the authority that vouches for it. */
  authority: string;
  accessKey: string;
  secretKey: string;
}

declare module "vitest" {
  export interface ProvidedContext {
    ceph: Ceph;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const certificate = await certificates(`DNS:${DNS_NAME},DNS:*.${DNS_NAME}`);
  const directory = mkdtempSync(join(tmpdir(), "clone-ceph-"));
  const lab = spawn(LAB, [directory], {
    env: {
      ...process.env,
      LAB_DNS_NAME: DNS_NAME,
      LAB_TLS_CERT: join(certificate.path, "server-cert.pem"),
      LAB_TLS_KEY: join(certificate.path, "server-key.pem"),
    },
    stdio: ["pipe", "pipe", "inherit"],
    // Ctrl-C is for the tests; it ends when they let go of it.
    detached: true,
  });
  lab.stdin.on("error", () => {}); // it has ended, which the tests see
  const ended = new Promise<void>((resolve) => lab.on("error", () => resolve()).on("close", () => resolve()));
  const isReady = await new Promise<boolean>((resolve) => {
    lab.stdout.setEncoding("utf8").on("data", (text: string) => {
      if (text.startsWith("ready")) resolve(true);
    });
    void ended.then(() => resolve(false));
  });
  if (!isReady) {
    await certificate[Symbol.asyncDispose]();
    throw new Error("the Ceph of the tests does not come up: see above");
  }

  const { s3Tls, ...facts } = JSON.parse(readFileSync(join(directory, "lab.json"), "utf8")) as Omit<Ceph, "authority">;
  project.provide("ceph", { ...facts, s3Tls, authority: join(certificate.path, "ca-cert.pem") });
  return async () => {
    const failed = project.vitest.state.getCountOfFailedTests() > 0;
    lab.stdin.end(failed ? "" : "done\n");
    await ended;
    await certificate[Symbol.asyncDispose]();
    if (!failed) rmSync(directory, { recursive: true, force: true });
  };
}
