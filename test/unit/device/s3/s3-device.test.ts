// An object in a bucket: signed, pinned to its version, found in its region; and what S3's refusals become.
import { inspect } from "node:util";
import { describe, expect, test } from "vitest";
import { ChangedError } from "../../../../src/base/errors.ts";
import type { S3Keys } from "../../../../src/device/s3/s3-credentials.ts";
import { S3Object } from "../../../../src/device/s3/s3-object.ts";
import { type Reply, status } from "../../../support/http-server.ts";
import { KEYS, openTestS3, s3Environment, s3Error, s3Server } from "../../../support/s3-server.ts";

const part = async (device: { read(offset: number, buffer: Uint8Array): Promise<void> }) => {
  const buffer = Buffer.alloc(16);
  await device.read(16, buffer);
  return buffer.toString();
};

describe("openS3()", () => {
  test("reads an object with signed requests, under its entity tag", async () => {
    await using server = await s3Server();
    const { device } = await openTestS3(server, { key: "a b/ü+(1)//disk.img" });
    await using _ = device;
    expect(await part(device)).toBe("0123456789abcdef");
    expect(device.name).toBe("s3://images/a b/ü+(1)//disk.img");
    expect(device.identity).toMatchObject({ kind: "s3", size: 16_000, etag: '"5d41402abc4b2a76b9719d911017c592-3"' });
    expect(server.requests.map(({ url }) => url)).toEqual(Array(2).fill("/images/a%20b/%C3%BC%2B%281%29//disk.img"));
    expect(server.requests[1]?.headers).toMatchObject({ "if-match": device.identity.etag, range: "bytes=16-31" });
    expect(server.state.problems).toEqual([]);
  });

  test("sends a session's token, signed", async () => {
    await using server = await s3Server();
    const { device } = await openTestS3(server, { environment: { AWS_SESSION_TOKEN: "the/token+=" } });
    await using _ = device;
    expect(server.requests[0]?.headers["x-amz-security-token"]).toBe("the/token+=");
    expect(server.requests[0]?.headers.authorization).toMatch(/SignedHeaders=[^,]*x-amz-security-token/);
  });

  test("signs nothing where it is told so", async () => {
    await using server = await s3Server();
    server.always(undefined);
    const { device } = await openTestS3(server, { environment: { AWS_NO_SIGN_REQUEST: "true" } });
    await using _ = device;
    expect(server.requests[0]?.headers).not.toHaveProperty("authorization");
  });

  test("asks for the version that it has found, so that it can be read when another has taken its place", async () => {
    await using server = await s3Server({ versionId: "3/L4kqt+x=" });
    const { device } = await openTestS3(server);
    await using _ = device;
    expect(await part(device)).toBe("0123456789abcdef");
    const query = "?versionId=3%2FL4kqt%2Bx%3D";
    expect(server.requests.map(({ url }) => new URL(url, server.origin).search)).toEqual(["", query, query]);
    expect(server.state.problems).toEqual([]);
  });

  test.each(["null", "\u00ff", "x".repeat(2000)])("of the version %j it asks for none", async (versionId) => {
    await using server = await s3Server({ versionId });
    const { device } = await openTestS3(server);
    await using _ = device;
    await part(device);
    expect(server.requests.every(({ url }) => !url.includes("?"))).toBe(true);
  });

  test("does without the version where it may not ask for one", async () => {
    await using server = await s3Server({ versionId: "v1" });
    server.always((request, response, serve) =>
      (request.url?.includes("versionId") ? s3Error(403, "AccessDenied") : server.honest)(request, response, serve),
    );
    const { device } = await openTestS3(server);
    await using _ = device;
    expect(await part(device)).toBe("0123456789abcdef");
    expect(server.requests.at(-1)?.url).toBe("/images/a/disk.img");
    server.object.etag = '"other"';
    await expect(part(device)).rejects.toBeInstanceOf(ChangedError);
  });

  test.each([
    [
      "301 with the bucket's region",
      s3Error(301, "PermanentRedirect", { fields: { "x-amz-bucket-region": "eu-west-3" } }),
    ],
    [
      "307 with the bucket's region",
      s3Error(307, "TemporaryRedirect", { fields: { "x-amz-bucket-region": "eu-west-3" } }),
    ],
    ["400 with it in the text", s3Error(400, "AuthorizationHeaderMalformed", { xml: "<Region>eu-west-3</Region>" })],
  ])("goes to the region that it is told: %s", async (_name, reply) => {
    await using server = await s3Server({ region: "eu-west-3" });
    server.next(reply);
    const { device } = await openTestS3(server);
    await using _ = device;
    expect(await part(device)).toBe("0123456789abcdef");
    expect(server.state.problems).toEqual([]);
  });

  test.each(["evil.example/", "us-east-1", "x".repeat(100)])("goes to no region %j", async (region) => {
    await using server = await s3Server();
    server.always(s3Error(301, "PermanentRedirect", { fields: { "x-amz-bucket-region": region } }));
    await expect(openTestS3(server)).rejects.toThrow(
      "HTTP 301 Moved Permanently: PermanentRedirect: About PermanentRedirect",
    );
    expect(server.requests).toHaveLength(1);
  });

  test("does not go round and round", async () => {
    await using server = await s3Server();
    let turn = 0;
    server.always((request, response, serve) => {
      const fields = { "x-amz-bucket-region": `r-${turn++}` };
      s3Error(301, "PermanentRedirect", { fields })(request, response, serve);
    });
    await expect(openTestS3(server)).rejects.toThrow("HTTP 301");
    expect(server.requests.length).toBeLessThan(5);
  });

  test("sends no signature to where a redirect leads", async () => {
    await using server = await s3Server();
    await using other = await s3Server();
    server.always(status(307, { location: `${other.origin}/images/a/disk.img` }));
    await expect(openTestS3(server)).rejects.toThrow("the bucket is at another endpoint");
    expect(other.requests).toEqual([]);
  });

  test("takes the server's time where the clock here is wrong, and says so", async () => {
    await using server = await s3Server();
    const notes: string[] = [];
    const serverDate = new Date(Date.now() + 3_600_000);
    server.next(s3Error(403, "RequestTimeTooSkewed", { fields: { date: serverDate.toUTCString() } }));
    const { device } = await openTestS3(server, { onNote: (line) => void notes.push(line) });
    await using _ = device;
    const sent = server.requests.at(-1)?.headers["x-amz-date"] as string;
    const at = Date.parse(sent.replace(/(....)(..)(..)T(..)(..)(..)Z/, "$1-$2-$3T$4:$5:$6Z"));
    expect(Math.abs(at - serverDate.getTime())).toBeLessThan(120_000);
    expect(notes).toEqual([
      expect.stringMatching(
        /^The clock of this machine is 3\d\d\d s behind that of "s3:\/\/images\/a\/disk.img": set it$/,
      ),
    ]);
    server.always(s3Error(403, "RequestTimeTooSkewed", { fields: { date: serverDate.toUTCString() } }));
    await expect(part(device)).rejects.toMatchObject({ hint: expect.stringContaining("set the clock") });
  });

  test("takes the server's time for all requests that were under way, and anew when a clock is set", async () => {
    await using server = await s3Server();
    const notes: string[] = [];
    const { device } = await openTestS3(server, { onNote: (line) => void notes.push(line) });
    await using _ = device;
    const skewed = (aheadMs: number) =>
      s3Error(403, "RequestTimeTooSkewed", { fields: { date: new Date(Date.now() + aheadMs).toUTCString() } });
    for (const aheadMs of [3_600_000, 0, -7_200_000]) {
      // All of them are signed before any of them is answered.
      const answers: (() => void)[] = [];
      const hold: Reply = (...parts) => {
        answers.push(() => skewed(aheadMs)(...parts));
        if (answers.length === 3) for (const answer of answers) answer();
      };
      server.next(hold, hold, hold);
      expect(await Promise.all([part(device), part(device), part(device)])).toEqual(Array(3).fill("0123456789abcdef"));
    }
    expect(notes).toHaveLength(1);
  });

  test.each([
    [404, "NoSuchKey", "ENOENT"],
    [404, "NoSuchBucket", "ENOENT"],
    [403, "AccessDenied", "EACCES"],
    [403, "InvalidAccessKeyId", "EACCES"],
    [403, "SignatureDoesNotMatch", "EACCES"],
    [403, "InvalidObjectState", "EACCES"],
    [400, "ExpiredToken", "EIO"],
  ])("%i %s is final, and says so in S3's words", async (code, name, errno) => {
    await using server = await s3Server();
    server.always(s3Error(code, name, { message: `It&apos;s &lt;so&gt;` }));
    await expect(openTestS3(server)).rejects.toMatchObject({
      errno,
      message: expect.stringMatching(
        new RegExp(`^Cannot open "s3://images/a/disk.img": HTTP ${code} [A-Za-z ]+: ${name}: It's <so>$`),
      ),
    });
    expect(server.requests).toHaveLength(1);
  });

  test.each<[number, string]>([
    [503, "SlowDown"],
    [500, "InternalError"],
    [400, "RequestTimeout"],
    [409, "OperationAborted"],
  ])("%i %s is asked again", async (code, name) => {
    await using server = await s3Server();
    server.next(s3Error(code, name));
    const { device, clock } = await openTestS3(server);
    await using _ = device;
    expect(clock.pauses).toEqual([75]);
  });

  test("shows no key, token or signature, whatever a server says", async () => {
    await using server = await s3Server();
    const token = "FwoGZXIvYXdzEXAMPLETOKEN0123456789";
    server.always((request, response, serve) => {
      const message = `${request.headers.authorization} ${token} ${KEYS.id} ${KEYS.secret} ${"a ".repeat(999)}\n\u001b[31m`;
      s3Error(403, "AccessDenied", { message })(request, response, serve);
    });
    const failed = await openTestS3(server, { environment: { AWS_SESSION_TOKEN: token } }).catch((error) => error);
    const text = inspect(failed, { depth: 20, showHidden: true }) + failed.stack;
    expect(failed.message).toContain("SignedHeaders=host;…;x-amz-date");
    expect(failed.message.length).toBeLessThan(400);
    for (const secret of [token, KEYS.id, KEYS.secret, "\u001b"]) expect(text).not.toContain(secret);
    const signature = /Signature=(\w+)/.exec(server.requests[0]?.headers.authorization ?? "")?.[1] as string;
    expect(text).not.toContain(signature);
  });

  test("is not given a header file, nor an endpoint with a password", async () => {
    await using server = await s3Server();
    await expect(openTestS3(server, { headerFile: "/x" })).rejects.toMatchObject({ code: "usage" });
    const environment = s3Environment("http://u:SECRET@host");
    await expect(openTestS3(server, { environment })).rejects.toMatchObject({
      code: "usage",
      message: expect.not.stringContaining("SECRET"),
    });
    expect(server.requests).toEqual([]);
  });
});

test("An object at AWS whose bucket is in another region is asked for at that region's host", async () => {
  const settings = {
    region: "us-east-1",
    endpoint: undefined,
    addressing: "auto",
    fips: false,
    dualstack: false,
  } as const;
  const keySource = { keys: async () => undefined, renew: async () => false };
  const object = new S3Object({ place: { ...settings, bucket: "images", key: "k" }, keySource });
  const head = { status: 301, headers: { "x-amz-bucket-region": "eu-west-3" } };
  expect(await object.explain(head, "", {})).toMatchObject({ next: "again" });
  expect(object.start()).toEqual({ origin: "https://images.s3.eu-west-3.amazonaws.com", path: "/k" });
});

describe("A session that expires", () => {
  const place = {
    region: "us-east-1",
    endpoint: "http://127.0.0.1:1",
    addressing: "path",
    fips: false,
    dualstack: false,
  };
  const expired = { head: { status: 400, headers: {} }, text: "<Error><Code>ExpiredToken</Code></Error>" };

  /** As the SDK's chain: what is asked for anew is what there is by now, which may be the same. */
  function session(latest: S3Keys[]) {
    let keys = latest.shift() as S3Keys;
    const state = { renewals: 0 };
    const renew = async () => {
      state.renewals += 1;
      await new Promise((resolve) => setTimeout(resolve, 5));
      const next = latest.shift();
      keys = next ?? keys;
      return next !== undefined;
    };
    const keySource = { keys: async () => keys, renew };
    const object = new S3Object({ place: { ...place, addressing: "path", bucket: "images", key: "k" }, keySource });
    const ask = async () => {
      const sent = await object.authorize(object.start());
      return async () => (await object.explain(expired.head, expired.text, sent))?.next;
    };
    return { state, ask };
  }

  const key = (name: string) => ({ accessKeyId: name, secretAccessKey: "s", sessionToken: `t-${name}` });

  test("is renewed once for all requests that were signed with it, also for those answered later", async () => {
    const { state, ask } = session([key("OLD"), key("NEW")]);
    const [first, second, late] = [await ask(), await ask(), await ask()];
    expect(await Promise.all([first(), second()])).toEqual(["again", "again"]);
    expect(await late()).toBe("again");
    expect(state.renewals).toBe(1);
    expect(await (await ask())()).toBe("never"); // the new one has expired, too, and there is no other
  });

  test("that goes on under the same key with another token is a new one", async () => {
    const { ask } = session([key("KEY"), { ...key("KEY"), sessionToken: "other" }]);
    const [first, late] = [await ask(), await ask()];
    expect([await first(), await late()]).toEqual(["again", "again"]);
  });
});
