// Signatures, against the examples of the AWS documentation (Signature Version 4, "Examples: Signature Calculations").
import type { IncomingMessage } from "node:http";
import { expect, test } from "vitest";
import { sign } from "../../../../src/device/s3/s3-signer.ts";
import { KEYS, signatureError } from "../../../support/s3-server.ts";

const keys = { accessKeyId: KEYS.id, secretAccessKey: KEYS.secret };
const date = new Date("2013-05-24T00:00:00Z");
const origin = "https://examplebucket.s3.amazonaws.com";

test.each([
  ["/?lifecycle=", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"],
  ["/?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"],
])("A GET of %s has the signature that the documentation gives", async (path, signature) => {
  const headers = await sign({ origin, path }, { keys, region: "us-east-1", date });
  expect(headers.authorization).toBe(
    `AWS4-HMAC-SHA256 Credential=${KEYS.id}/20130524/us-east-1/s3/aws4_request, ` +
      `SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=${signature}`,
  );
  expect(headers["x-amz-date"]).toBe("20130524T000000Z");
  expect(headers).not.toHaveProperty("host");
});

test.each([
  "/a%20b%2Bc/%C3%BC",
  "//a//b/",
  "/a/../b",
  "/%252F",
  "/disk.img?versionId=3%2FL4kqtJl%2BcpX%3D",
  "/x?versionId=null",
])("A GET of %s is signed as it is sent, as a second implementation sees it", async (path) => {
  const target = { origin: "http://127.0.0.1:9000", path };
  const headers = await sign(target, {
    keys: { ...keys, sessionToken: "token/+=" },
    region: "garage",
    date: new Date(),
  });
  expect(headers["x-amz-security-token"]).toBe("token/+=");
  expect(headers.authorization).toContain("x-amz-security-token");
  const request = { method: "GET", url: path, headers: { host: "127.0.0.1:9000", ...headers } };
  expect(signatureError(request as unknown as IncomingMessage, "garage", KEYS.secret)).toBeUndefined();
  expect(signatureError(request as unknown as IncomingMessage, "garage", "another")).toBeDefined();
});
