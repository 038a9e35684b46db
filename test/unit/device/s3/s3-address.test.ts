// Where a request for an object goes.
import { describe, expect, test } from "vitest";
import { encodeKey, isRegion, type S3Place, s3Target } from "../../../../src/device/s3/s3-address.ts";

const PLACE: S3Place = {
  bucket: "images",
  key: "disk.img",
  region: "eu-central-1",
  endpoint: undefined,
  addressing: "auto",
  fips: false,
  dualstack: false,
};

describe("s3Target()", () => {
  test.each<[Partial<S3Place>, string]>([
    [{}, "https://images.s3.eu-central-1.amazonaws.com/disk.img"],
    [{ region: "us-east-1" }, "https://images.s3.us-east-1.amazonaws.com/disk.img"],
    [{ region: "cn-north-1" }, "https://images.s3.cn-north-1.amazonaws.com.cn/disk.img"],
    [{ fips: true }, "https://images.s3-fips.eu-central-1.amazonaws.com/disk.img"],
    [{ dualstack: true }, "https://images.s3.dualstack.eu-central-1.amazonaws.com/disk.img"],
    [{ addressing: "path" }, "https://s3.eu-central-1.amazonaws.com/images/disk.img"],
    // A certificate for *.s3.… does not cover two labels.
    [{ bucket: "my.images" }, "https://s3.eu-central-1.amazonaws.com/my.images/disk.img"],
    [{ bucket: "Old_Bucket" }, "https://s3.eu-central-1.amazonaws.com/Old_Bucket/disk.img"],
    [{ endpoint: "http://127.0.0.1:9000" }, "http://127.0.0.1:9000/images/disk.img"],
    [{ endpoint: "https://host/s3/" }, "https://host/s3/images/disk.img"],
    [{ endpoint: "https://host", addressing: "virtual" }, "https://images.host/disk.img"],
    [
      { key: "a b+c/ü/d?e#f%2F&=" },
      "https://images.s3.eu-central-1.amazonaws.com/a%20b%2Bc/%C3%BC/d%3Fe%23f%252F%26%3D",
    ],
    [{ key: "/a//b/" }, "https://images.s3.eu-central-1.amazonaws.com//a//b/"],
    [{ key: "a/../b/./c" }, "https://images.s3.eu-central-1.amazonaws.com/a/../b/./c"],
  ])("of %j is %s", (more, expected) => {
    const { origin, path } = s3Target({ ...PLACE, ...more });
    expect(origin + path).toBe(expected);
  });

  test.each(["ftp://host", "host:9000", "http://u:SECRET@host", "http://host/?token=SECRET", "http://host/?a=b", ""])(
    "the endpoint %j is refused",
    (endpoint) => {
      expect(() => s3Target({ ...PLACE, endpoint })).toThrow("Cannot use the S3 endpoint");
      expect(() => s3Target({ ...PLACE, endpoint })).not.toThrow(/SECRET/);
    },
  );

  test("a bucket that fits no host's name is not made part of one", () => {
    expect(() => s3Target({ ...PLACE, bucket: "a.b", addressing: "virtual" })).toThrow(
      "cannot be part of a host's name",
    );
  });
});

test("encodeKey() leaves alone what SigV4 does, and nothing else", () => {
  expect(encodeKey("AZaz09-_.~/")).toBe("AZaz09-_.~/");
  expect(encodeKey("!'()*")).toBe("%21%27%28%29%2A");
  expect(encodeKey("💾")).toBe("%F0%9F%92%BE");
});

test.each(["us-east-1", "garage", "eu-isoe-west-1", "default"])("isRegion(%j)", (text) =>
  expect(isRegion(text)).toBe(true),
);

test.each(["", "evil.example/", "a.b", "-a", "a-", "A", "x".repeat(64), "us east", "us-east-1\n"])(
  "not isRegion(%j)",
  (text) => {
    expect(isRegion(text)).toBe(false);
  },
);
