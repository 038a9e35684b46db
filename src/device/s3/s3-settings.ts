/**
 * What the environment and the profile say of where S3 is, as the AWS tools read them.
 *
 *     endpoint     AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, [services …] s3.endpoint_url, endpoint_url; else AWS
 *     region       AWS_REGION, AWS_DEFAULT_REGION, region; else us-east-1
 *     addressing   s3.addressing_style: path, virtual or auto
 */
import { homedir } from "node:os";
import { join } from "node:path";
import { UsageError } from "../../base/errors.ts";
import type { Environment } from "../http/credentials.ts";
import { isRegion, type S3Place } from "./s3-address.ts";

/** Everything but what is to be read. */
export interface S3Settings extends Omit<S3Place, "bucket" | "key"> {
  /** The profile that is in use. */
  profile: string;
  /** Whether somebody has named it: then it has to be there. */
  isProfileGiven: boolean;
  files: ProfileFiles;
}

/** Paths of the profile files. */
export interface ProfileFiles {
  credentials: string;
  config: string;
}

/** Reads environment and profile. @throws {UsageError} where they say what cannot be */
export async function loadS3Settings(environment: Environment): Promise<S3Settings> {
  const variable = (name: string): string | undefined => environment[name] || undefined;
  const given = variable("AWS_PROFILE");
  const profile = given ?? "default";
  const files = profileFiles(environment);
  // Loaded here and not above: who reads no S3 does not wait for it.
  const { loadSharedConfigFiles } = await import("@smithy/shared-ini-file-loader");
  const { configFile, credentialsFile } = await loadSharedConfigFiles({
    filepath: files.credentials,
    configFilepath: files.config,
    ignoreCache: true,
  });
  if (given !== undefined && configFile[given] === undefined && credentialsFile[given] === undefined) {
    throw new UsageError(
      `Cannot use the AWS profile "${given}": neither "${files.config}" nor "${files.credentials}" has it`,
    );
  }
  const settings = { ...credentialsFile[profile], ...configFile[profile] };
  const services = configFile[`services.${settings.services ?? ""}`] ?? {};
  const ignoresConfigured = isTrue(
    variable("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") ?? settings.ignore_configured_endpoint_urls,
  );
  const configured = [
    variable("AWS_ENDPOINT_URL_S3"),
    variable("AWS_ENDPOINT_URL"),
    services["s3.endpoint_url"],
    settings.endpoint_url,
  ].find((url) => url !== undefined && url !== "");
  const region = variable("AWS_REGION") ?? variable("AWS_DEFAULT_REGION") ?? (settings.region || "us-east-1");
  if (!isRegion(region))
    throw new UsageError(`Cannot use the AWS region "${region.slice(0, 64)}": it is no region's name`);
  return {
    profile,
    isProfileGiven: given !== undefined,
    files,
    region,
    endpoint: ignoresConfigured ? undefined : configured,
    addressing: addressingStyle(settings["s3.addressing_style"]),
    fips: isTrue(variable("AWS_USE_FIPS_ENDPOINT") ?? settings.use_fips_endpoint),
    dualstack: isTrue(variable("AWS_USE_DUALSTACK_ENDPOINT") ?? settings.use_dualstack_endpoint),
  };
}

/** Whether a variable or a setting says yes. */
export function isTrue(text: string | undefined): boolean {
  return /^(true|yes|on|1)$/i.test(text ?? "");
}

function profileFiles(environment: Environment): ProfileFiles {
  const home = environment.HOME || homedir();
  return {
    credentials: environment.AWS_SHARED_CREDENTIALS_FILE || join(home, ".aws", "credentials"),
    config: environment.AWS_CONFIG_FILE || join(home, ".aws", "config"),
  };
}

function addressingStyle(text: string | undefined): S3Place["addressing"] {
  if (text === undefined || text === "auto" || text === "path" || text === "virtual") return text ?? "auto";
  throw new UsageError(`Cannot use the AWS profile: s3.addressing_style is auto, path or virtual`);
}
