/** A bucket at the gateway of the tests' Ceph, filled by s3cmd: requests that are signed by somebody else than we. */
import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Ceph } from "./ceph.ts";

const execute = promisify(execFile);
let buckets = 0;

export interface Bucket {
  readonly name: string;
  /**
   * Makes a file an object, or writes over one. Over 15 MiB it goes in parts, as big ones always do, and its entity tag is then
   * no checksum of it.
   */
  put(key: string, file: string): Promise<void>;
  remove(key: string): Promise<void>;
}

/** An empty bucket. `cwd` is where the keys are written down for s3cmd; it goes with the bucket. */
export async function newBucket(ceph: Ceph, cwd: string): Promise<Bucket> {
  buckets += 1;
  const name = `clone-test-${process.pid}-${buckets}`;
  const settings = join(cwd, `${name}.s3cfg`);
  const host = new URL(ceph.s3).host;
  const lines = {
    access_key: ceph.accessKey,
    secret_key: ceph.secretKey,
    host_base: host,
    host_bucket: host,
    use_https: "False",
    signature_v2: "False",
    multipart_chunk_size_mb: "15",
    // s3cmd leaves some characters as they are in keys otherwise.
    urlencoding_mode: "normal",
  };
  const text = Object.entries(lines).map(([key, value]) => `${key} = ${value}\n`);
  await writeFile(settings, `[default]\n${text.join("")}`, { mode: 0o600 });
  const s3cmd = async (...args: string[]): Promise<void> => {
    const env = { ...process.env, LC_ALL: "C.UTF-8", http_proxy: "", no_proxy: "*" };
    await execute("s3cmd", ["-c", settings, "--no-progress", "--quiet", ...args], { env });
  };
  await s3cmd("mb", `s3://${name}`);
  return {
    name,
    put: (key, file) => s3cmd("put", file, `s3://${name}/${key}`),
    remove: (key) => s3cmd("del", `s3://${name}/${key}`),
  };
}
