/** An object in S3, or in whatever else speaks its protocol, as a device that can be read. */
import { UsageError } from "../../base/errors.ts";
import { HttpDevice, type HttpDeviceOptions } from "../http/http-device.ts";
import type { RemoteDevice } from "../remote-device.ts";
import { s3KeySource } from "./s3-credentials.ts";
import { S3Object } from "./s3-object.ts";
import { loadS3Settings } from "./s3-settings.ts";

/** What to open. The key is as it is named, not percent-encoded. */
export interface S3Location {
  bucket: string;
  key: string;
}

/** How to open it. The AWS SDK's chain of credentials reads the process's own environment besides. */
export interface S3OpenOptions extends HttpDeviceOptions {
  /** Not for S3, whose requests are signed. */
  headerFile?: string | undefined;
}

/**
 * Opens an object for reading, by the endpoint, region and credentials that the AWS environment variables and profile files
 * name.
 * @throws {UsageError} where these cannot be used
 * @throws {CloneError} where there are no credentials
 * @throws {DeviceError} where the object is not to be had
 */
export async function openS3({ bucket, key }: S3Location, options: S3OpenOptions = {}): Promise<RemoteDevice> {
  const { environment = process.env, onNote } = options;
  const name = `s3://${bucket}/${key}`;
  if (options.headerFile !== undefined) {
    throw new UsageError(`Cannot open "${name}" with a header file: that is for http: and https:`);
  }
  const settings = await loadS3Settings(environment);
  const keySource = await s3KeySource(name, environment, settings);
  const service = new S3Object({ place: { ...settings, bucket, key }, keySource, onNote });
  return await HttpDevice.openService(service, options);
}
