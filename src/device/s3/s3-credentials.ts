/**
 * Who asks S3: nobody, where AWS_NO_SIGN_REQUEST says so; the keys in the environment; else whoever the AWS SDK's chain
 * finds: profile files, SSO, web identities, a process, containers, EC2. The chain is loaded only then.
 */
import { CloneError } from "../../base/errors.ts";
import type { Environment } from "../http/credentials.ts";
import { isTrue, type S3Settings } from "./s3-settings.ts";

/** Keys to sign with. */
export interface S3Keys {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string | undefined;
}

/** Where keys come from. */
export interface S3KeySource {
  /** The keys of this moment; undefined: requests are not signed. @throws {CloneError} where there are none */
  keys(): Promise<S3Keys | undefined>;
  /** Gets new ones in place of those that have expired; false where there cannot be any. @throws {CloneError} */
  renew(): Promise<boolean>;
}

const HINT =
  "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; or AWS_NO_SIGN_REQUEST=true for a public bucket.";

/** The keys that environment and settings name. `name` is the object's, for messages. @throws {CloneError} */
export async function s3KeySource(
  name: string,
  environment: Environment,
  settings: Pick<S3Settings, "profile" | "files">,
): Promise<S3KeySource> {
  if (isTrue(environment.AWS_NO_SIGN_REQUEST)) return fixed(undefined);
  const { AWS_ACCESS_KEY_ID: id = "", AWS_SECRET_ACCESS_KEY: secret = "", AWS_SESSION_TOKEN: token = "" } = environment;
  if ((id === "") !== (secret === "")) {
    const missing = id === "" ? "AWS_ACCESS_KEY_ID" : "AWS_SECRET_ACCESS_KEY";
    throw new CloneError("failed", `Cannot open "${name}": ${missing} is not set`, { hint: HINT });
  }
  if (id !== "") {
    return fixed({ accessKeyId: id, secretAccessKey: secret, ...(token === "" ? {} : { sessionToken: token }) });
  }
  return await chain(name, settings);
}

function fixed(keys: S3Keys | undefined): S3KeySource {
  return { keys: async () => keys, renew: async () => false };
}

async function chain(name: string, { profile, files }: Pick<S3Settings, "profile" | "files">): Promise<S3KeySource> {
  const { defaultProvider } = await import("@aws-sdk/credential-provider-node");
  const paths = { filepath: files.credentials, configFilepath: files.config, ignoreCache: true };
  const provider = defaultProvider({ profile, ...paths });
  const ask = async (options?: { forceRefresh: boolean }): Promise<S3Keys> => {
    try {
      return await provider(options);
    } catch (error) {
      // Not as the cause: it may quote what a program of the profile has printed.
      throw new CloneError("failed", `Cannot open "${name}": ${reasonOf(error)}`, { hint: HINT });
    }
  };
  return {
    keys: () => ask(),
    renew: async () => {
      const before = await ask();
      const after = await ask({ forceRefresh: true });
      return after.accessKeyId !== before.accessKeyId || after.sessionToken !== before.sessionToken;
    },
  };
}

/** The SDK's own words where they are about SSO, which only they explain. */
function reasonOf(error: unknown): string {
  const message = error instanceof Error ? error.message : "";
  if (/\bSSO\b|sso login/i.test(message) && !/command failed/i.test(message)) {
    return `no AWS credentials: ${message.split("\n", 1)[0]?.slice(0, 200)}`;
  }
  if (/command failed/i.test(message)) return "no AWS credentials: the profile's credential_process failed";
  return "no AWS credentials were found";
}
