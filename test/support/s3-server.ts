/** A server that answers like S3, and checks signatures by a second implementation of Signature Version 4. */
import { createHash, createHmac } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { openS3, type S3OpenOptions } from "../../src/device/s3/s3-device.ts";
import { HastyClock } from "./hasty-clock.ts";
import { httpServer, type Reply } from "./http-server.ts";

/** Keys that the server knows; the AWS documentation's. */
export const KEYS = { id: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" };

/** The environment of somebody who has them, for a server at `endpoint`. */
export function s3Environment(endpoint: string, more: Record<string, string> = {}): Record<string, string> {
  return {
    HOME: "/nonexistent",
    AWS_ENDPOINT_URL_S3: endpoint,
    AWS_ACCESS_KEY_ID: KEYS.id,
    AWS_SECRET_ACCESS_KEY: KEYS.secret,
    ...more,
  };
}

/** An S3 error as servers send it, with all that they repeat of a request. */
export function s3Error(
  status: number,
  code: string,
  more: { message?: string; fields?: Record<string, string>; xml?: string } = {},
): Reply {
  return (request, response) => {
    const { message = `About ${code}`, fields = {}, xml = "" } = more;
    const signature = /Signature=(\w+)/.exec(request.headers.authorization ?? "")?.[1] ?? "";
    const repeated = `<AWSAccessKeyId>${KEYS.id}</AWSAccessKeyId><SignatureProvided>${signature}</SignatureProvided>`;
    response.writeHead(status, { "content-type": "application/xml", ...fields });
    response.end(
      `<?xml version="1.0"?><Error><Code>${code}</Code><Message>${message}</Message>${repeated}${xml}</Error>`,
    );
  };
}

/** Why a request's signature is not right, or undefined where it is. */
export function signatureError(request: IncomingMessage, region: string, secret: string): string | undefined {
  const { authorization = "" } = request.headers;
  const pattern =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, SignedHeaders=([^,]+), Signature=(\w{64})$/;
  const [, , day = "", scopeRegion = "", names = "", signature] = pattern.exec(authorization) ?? [];
  if (scopeRegion !== region) return `region ${scopeRegion}`;
  const [path = "", query = ""] = (request.url as string).split("?");
  const parts =
    query === ""
      ? []
      : query
          .split("&")
          .map((part) => (part.includes("=") ? part : `${part}=`))
          .sort();
  const headers = names.split(";").map((name) => `${name}:${String(request.headers[name]).trim()}\n`);
  const payload = request.headers["x-amz-content-sha256"];
  const canonical = [request.method, path, parts.join("&"), headers.join(""), names, payload].join("\n");
  const scope = `${day}/${region}/s3/aws4_request`;
  const hash = createHash("sha256").update(canonical).digest("hex");
  const text = ["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, hash].join("\n");
  const hmac = (key: string | Buffer, data: string) => createHmac("sha256", key).update(data).digest();
  const key = [day, region, "s3", "aws4_request"].reduce<string | Buffer>(
    (from, data) => hmac(from, data),
    `AWS4${secret}`,
  );
  return hmac(key, text).toString("hex") === signature ? undefined : `signature of\n${canonical}`;
}

/** A server for one object that answers signed requests only; `region` may be changed. */
export async function s3Server(options: { region?: string; versionId?: string } = {}) {
  const server = await httpServer({ etag: '"5d41402abc4b2a76b9719d911017c592-3"' });
  const state = { region: options.region ?? "us-east-1", versionId: options.versionId, problems: [] as string[] };
  const honest: Reply = (request, response, serve) => {
    const problem = signatureError(request, state.region, KEYS.secret);
    if (problem === undefined) return serve({ "x-amz-version-id": state.versionId });
    state.problems.push(problem);
    s3Error(403, "SignatureDoesNotMatch")(request, response, serve);
  };
  server.always(honest);
  return Object.assign(server, { state, honest });
}

/** Opens an object there. */
export async function openTestS3(
  server: { origin: string },
  {
    key = "a/disk.img",
    environment,
    ...options
  }: Omit<S3OpenOptions, "environment"> & { key?: string; environment?: Record<string, string> } = {},
) {
  const clock = new HastyClock();
  const common = { clock, random: () => 0.5, requestTimeoutMs: 1_000_000 };
  const device = await openS3(
    { bucket: "images", key },
    { ...common, environment: s3Environment(server.origin, environment), ...options },
  );
  return { device, clock };
}
