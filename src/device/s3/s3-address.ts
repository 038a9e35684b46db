/** Where a bucket and a key are found: the host and the path of every request. */
import { UsageError } from "../../base/errors.ts";
import type { Target } from "../http/connections.ts";
import { safeUrl } from "../http/safe-url.ts";

/** What is asked for, and the kind of place that it is at. */
export interface S3Place {
  bucket: string;
  /** As it is named: not percent-encoded, any characters. */
  key: string;
  region: string;
  /** Another server than AWS's; its URL may have a path. */
  endpoint: string | undefined;
  /** `path`: https://host/bucket/key; `virtual`: https://bucket.host/key; `auto`: whatever the place is known to want. */
  addressing: "auto" | "path" | "virtual";
  fips: boolean;
  dualstack: boolean;
}

/** A bucket's name that can be a part of a host's name, with a certificate for one label. */
const HOST_LABEL = /^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$/;

/** Regions become part of a host's name, which is sent a signature: one that a reply names is checked by this. */
export function isRegion(text: string): boolean {
  return /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(text);
}

/** The target of an object. @throws {UsageError} where the endpoint cannot be used */
export function s3Target({ bucket, key, region, endpoint, addressing, fips, dualstack }: S3Place): Target {
  const base = endpoint === undefined ? awsEndpoint(region, { fips, dualstack }) : parseEndpoint(endpoint);
  const fitsHost = HOST_LABEL.test(bucket);
  const isVirtual = addressing === "virtual" || (addressing === "auto" && endpoint === undefined && fitsHost);
  const prefix = base.pathname.replace(/\/$/, "");
  const path = encodeKey(key);
  if (!isVirtual) return { origin: base.origin, path: `${prefix}/${encodeKey(bucket)}/${path}` };
  if (!fitsHost) {
    throw new UsageError(`Cannot open "s3://${bucket}/…": the bucket's name cannot be part of a host's name`, {
      hint: "Set addressing_style to path in the profile.",
    });
  }
  return { origin: `${base.protocol}//${bucket}.${base.host}`, path: `${prefix}/${path}` };
}

function awsEndpoint(region: string, { fips, dualstack }: { fips: boolean; dualstack: boolean }): URL {
  const domain = region.startsWith("cn-") ? "amazonaws.com.cn" : "amazonaws.com";
  return new URL(`https://s3${fips ? "-fips" : ""}${dualstack ? ".dualstack" : ""}.${region}.${domain}`);
}

function parseEndpoint(endpoint: string): URL {
  const url = URL.canParse(endpoint) ? new URL(endpoint) : undefined;
  const { text, isComplete } = safeUrl(endpoint);
  const isUsable = url !== undefined && /^https?:$/.test(url.protocol) && isComplete && url.search === "";
  if (!isUsable) {
    throw new UsageError(
      `Cannot use the S3 endpoint "${text}": an http: or https: URL without user and query is needed`,
    );
  }
  return url;
}

/** Percent-encodes all but what RFC 3986 leaves alone, and the slashes, as SigV4 wants it; nothing is normalised. */
export function encodeKey(key: string): string {
  return encodeURIComponent(key)
    .replaceAll(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll("%2F", "/");
}
