/** Signature Version 4, by the AWS SDK's own signer. */
import { createHash, createHmac, type Hash, type Hmac } from "node:crypto";
import type { Target } from "../http/connections.ts";
import type { S3Keys } from "./s3-credentials.ts";

/** What a signature is for. */
export interface SigningOptions {
  keys: S3Keys;
  region: string;
  /** Now, as the server sees it. */
  date: Date;
}

/**
 * The headers that sign a GET of `target`. Only the host and the signature's own headers are signed: a proxy may change
 * others, and the ranges and conditions of a request are checked in its reply.
 */
export async function sign(target: Target, { keys, region, date }: SigningOptions): Promise<Record<string, string>> {
  const { SignatureV4 } = await import("@smithy/signature-v4");
  const { accessKeyId, secretAccessKey, sessionToken } = keys;
  const credentials = { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) };
  // S3 alone signs the path as it is sent, neither normalised nor encoded twice.
  const signer = new SignatureV4({ service: "s3", region, credentials, sha256: Sha256, uriEscapePath: false });
  const url = new URL(target.origin);
  const [path = "/", query = ""] = target.path.split("?", 2);
  const signed = await signer.sign(
    {
      method: "GET",
      protocol: url.protocol,
      hostname: url.hostname,
      path,
      query: Object.fromEntries(new URLSearchParams(query)),
      headers: { host: url.host },
    },
    { signingDate: date },
  );
  const { host: _, ...headers } = signed.headers;
  return headers;
}

/** SHA-256, or its HMAC where there is a secret, as the signer wants it. */
class Sha256 {
  readonly #secret: string | Uint8Array | undefined;
  #hash: Hash | Hmac;

  constructor(secret?: string | ArrayBuffer | ArrayBufferView) {
    this.#secret = secret === undefined ? undefined : bytesOf(secret);
    this.#hash = this.#fresh();
  }

  update(data: Uint8Array): void {
    this.#hash.update(data);
  }

  async digest(): Promise<Uint8Array> {
    return this.#hash.digest();
  }

  reset(): void {
    this.#hash = this.#fresh();
  }

  #fresh(): Hash | Hmac {
    return this.#secret === undefined ? createHash("sha256") : createHmac("sha256", this.#secret);
  }
}

function bytesOf(source: string | ArrayBuffer | ArrayBufferView): string | Uint8Array {
  if (typeof source === "string") return source;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
}
