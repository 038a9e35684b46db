// What environment and profile files say of where S3 is, and who asks.
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, describe, expect, test, vi } from "vitest";
import { s3KeySource } from "../../../../src/device/s3/s3-credentials.ts";
import { loadS3Settings } from "../../../../src/device/s3/s3-settings.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const CONFIG = `
[default]
region = eu-west-1
[profile lab]
region = lab-1
endpoint_url = https://all.lab.example
services = lab-services
s3 =
  addressing_style = virtual
[services lab-services]
s3 =
  endpoint_url = https://s3.lab.example
[profile plain]
endpoint_url = https://plain.example
[profile odd]
s3 =
  addressing_style = sideways
`;

async function files(credentials = "") {
  const directory = await scratchDirectory();
  const paths = {
    AWS_CONFIG_FILE: join(directory.path, "config"),
    AWS_SHARED_CREDENTIALS_FILE: join(directory.path, "keys"),
  };
  await writeFile(paths.AWS_CONFIG_FILE, CONFIG);
  await writeFile(paths.AWS_SHARED_CREDENTIALS_FILE, credentials, { mode: 0o600 });
  return { ...directory, environment: { HOME: directory.path, ...paths } };
}

afterEach(() => vi.unstubAllEnvs());

describe("loadS3Settings()", () => {
  test("without anything is AWS in us-east-1", async () => {
    expect(await loadS3Settings({ HOME: "/nonexistent" })).toMatchObject({
      region: "us-east-1",
      endpoint: undefined,
      addressing: "auto",
      profile: "default",
    });
  });

  test.each<[Record<string, string>, object]>([
    [{}, { region: "eu-west-1", endpoint: undefined }],
    [{ AWS_DEFAULT_REGION: "b", AWS_REGION: "a" }, { region: "a" }],
    [{ AWS_DEFAULT_REGION: "b" }, { region: "b" }],
    [{ AWS_PROFILE: "lab" }, { region: "lab-1", endpoint: "https://s3.lab.example", addressing: "virtual" }],
    [{ AWS_PROFILE: "plain" }, { region: "us-east-1", endpoint: "https://plain.example", addressing: "auto" }],
    [{ AWS_PROFILE: "lab", AWS_ENDPOINT_URL: "http://b" }, { endpoint: "http://b" }],
    [{ AWS_ENDPOINT_URL: "http://b", AWS_ENDPOINT_URL_S3: "http://a" }, { endpoint: "http://a" }],
    [{ AWS_PROFILE: "lab", AWS_IGNORE_CONFIGURED_ENDPOINT_URLS: "true" }, { endpoint: undefined }],
    [
      { AWS_USE_FIPS_ENDPOINT: "true", AWS_USE_DUALSTACK_ENDPOINT: "TRUE" },
      { fips: true, dualstack: true },
    ],
  ])("with %j is %j", async (more, expected) => {
    await using given = await files();
    expect(await loadS3Settings({ ...given.environment, ...more })).toMatchObject(expected);
  });

  test.each([
    [{ AWS_PROFILE: "none" }, 'Cannot use the AWS profile "none"'],
    [{ AWS_PROFILE: "odd" }, "s3.addressing_style is auto, path or virtual"],
    [{ AWS_REGION: "evil.example/" }, 'Cannot use the AWS region "evil.example/"'],
  ])("%j is refused", async (more, text) => {
    await using given = await files();
    await expect(loadS3Settings({ ...given.environment, ...more })).rejects.toThrow(text);
  });
});

describe("s3KeySource()", () => {
  const at = { profile: "default", files: { credentials: "/nonexistent", config: "/nonexistent" } };

  test("takes the keys of the environment, and no others then", async () => {
    const environment = { AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "secret", AWS_SESSION_TOKEN: "token" };
    const source = await s3KeySource("s3://b/k", environment, at);
    expect(await source.keys()).toEqual({ accessKeyId: "id", secretAccessKey: "secret", sessionToken: "token" });
    expect(await source.renew()).toBe(false);
  });

  test.each([{ AWS_ACCESS_KEY_ID: "SECRET" }, { AWS_SECRET_ACCESS_KEY: "SECRET" }])(
    "half of a key is refused",
    async (half) => {
      const failed = await s3KeySource("s3://b/k", half, at).catch((error) => error);
      expect(failed.message).toMatch(/^Cannot open "s3:\/\/b\/k": AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY) is not set$/);
    },
  );

  test("is nobody where AWS_NO_SIGN_REQUEST says so", async () => {
    const environment = { AWS_NO_SIGN_REQUEST: "true", AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "secret" };
    expect(await (await s3KeySource("s3://b/k", environment, at)).keys()).toBeUndefined();
  });

  test("takes the keys of the profile, and new ones when they have expired", async () => {
    await using given = await files("[lab]\naws_access_key_id = one\naws_secret_access_key = s\n");
    const environment = { ...given.environment, AWS_PROFILE: "lab" };
    const settings = await loadS3Settings(environment);
    const source = await s3KeySource("s3://b/k", environment, settings);
    expect(await source.keys()).toMatchObject({ accessKeyId: "one", secretAccessKey: "s" });
    expect(await source.renew()).toBe(false);
    await writeFile(
      given.environment.AWS_SHARED_CREDENTIALS_FILE,
      "[lab]\naws_access_key_id = two\naws_secret_access_key = t\n",
    );
    expect(await source.renew()).toBe(true);
    expect(await source.keys()).toMatchObject({ accessKeyId: "two" });
  });

  test("takes the keys that a program of the profile prints", async () => {
    await using given = await files();
    const program = join(given.path, "keys.sh");
    const keys = { Version: 1, AccessKeyId: "printed", SecretAccessKey: "s", SessionToken: "t" };
    await writeFile(program, `#!/bin/sh\necho '${JSON.stringify(keys)}'\n`);
    await chmod(program, 0o755);
    await writeFile(given.environment.AWS_CONFIG_FILE, `[profile p]\ncredential_process = ${program}\n`);
    const environment = { ...given.environment, AWS_PROFILE: "p" };
    const source = await s3KeySource("s3://b/k", environment, await loadS3Settings(environment));
    expect(await source.keys()).toMatchObject({ accessKeyId: "printed", sessionToken: "t" });
  });

  test("says that there are none, and what to do; of a program that failed it shows nothing", async () => {
    vi.stubEnv("AWS_EC2_METADATA_DISABLED", "true");
    await using given = await files();
    const none = await s3KeySource("s3://b/k", given.environment, await loadS3Settings(given.environment));
    await expect(none.keys()).rejects.toMatchObject({
      code: "failed",
      message: 'Cannot open "s3://b/k": no AWS credentials were found',
      hint: expect.stringContaining("AWS_NO_SIGN_REQUEST"),
    });
    const config = `[profile p]\ncredential_process = sh -c "echo SECRET-1 >&2; exit 1" SECRET-2\n`;
    await writeFile(given.environment.AWS_CONFIG_FILE, config);
    const environment = { ...given.environment, AWS_PROFILE: "p" };
    const failing = await s3KeySource("s3://b/k", environment, await loadS3Settings(environment));
    const failed = await failing.keys().catch((error) => error);
    expect(failed.message).toMatch(/^Cannot open "s3:\/\/b\/k": /);
    expect(`${failed.stack} ${failed.cause}`).not.toContain("SECRET");
  });
});
