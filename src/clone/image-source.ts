/**
 * Sources that a program of their own reads: images in a format, what only qemu's drivers reach, and what a command serves.
 *
 *     a local image           qemu-nbd ──► its file, backing files included             each by driver and path
 *     an image elsewhere      qemu-nbd ──► our own NBD server ──► HTTP, S3, NBD         pinned, with credentials, by us
 *     rbd:… ssh:// json:{…}   qemu-nbd ──► as its drivers do
 *     [ COMMAND … ]           the command, on a socket that it is handed
 *
 * The program is handed a socket without a name (`ChildServer`), and ends with us.
 */
import { BusyError, CloneError, UsageError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { LaunchError } from "../device/child-program.ts";
import { ChildServer } from "../device/child-server.ts";
import type { RemoteOptions } from "../device/remote-device.ts";
import { pathOfDescriptor } from "../device/unnamed-socket.ts";
import { NbdDevice } from "../nbd/client/nbd-device.ts";
import { ChildDevice, type ChildDeviceParts } from "./child-device.ts";
import { displayCommand } from "./command-text.ts";
import { type ImageNode, imageFormat, localImage } from "./image-graph.ts";
import { parseJsonImage, refuseCredentials } from "./image-location.ts";
import { FIRST_HEADER_BYTES, readReferences, refuseReferences } from "./image-references.ts";
import { explainMissing, explainWords, LOCKED_HINT } from "./qemu-words.ts";
import { ServedSource } from "./served-source.ts";

/** What to open. `format` is qemu's name for it; `isGiven` says that the user has named it, and means what it refers to too. */
export type ImageRequest =
  /** A file or block device of this machine. */
  | { kind: "file"; path: string; format: string; isGiven?: boolean }
  /** A device of ours that holds an image; it stays the caller's, and has to outlive the image. */
  | { kind: "device"; device: BlockDevice; format: string; isGiven?: boolean }
  /** What qemu opens by itself: `rbd:pool/image`, `ssh://…`, `json:{…}`. */
  | { kind: "qemu"; filename: string; format: string }
  /** A program that serves NBD on the socket that it is handed. */
  | { kind: "command"; words: readonly string[] };

/** Connections that qemu-nbd accepts: those of one client, and of the one before that it has not noticed the end of. */
const CLIENTS = 16;
/** The descriptor that a program inherits first, besides its socket. */
const FIRST_INHERITED = 4;

/**
 * Opens a source through a program, read-only. Disposing of it ends the program.
 * @throws {UsageError} for a format that there is not, or a text that holds a credential
 * @throws {CloneError} where the program is missing, with the package to install
 * @throws {DeviceError} where it cannot be opened, in the program's words
 */
export async function openImage(request: ImageRequest, options: RemoteOptions = {}): Promise<ChildDevice> {
  switch (request.kind) {
    case "file":
      return await openLocalImage(request, options);
    case "device":
      return await openServedImage(request, options);
    case "qemu":
      return await openByQemu(request, options);
    case "command":
      return await openCommand(request.words, options);
  }
}

async function openLocalImage(
  { path, format, isGiven = false }: Extract<ImageRequest, { kind: "file" }>,
  options: RemoteOptions,
): Promise<ChildDevice> {
  const image = await localImage(path, imageFormat(format), isGiven);
  const [, ...others] = image.files;
  for (const file of others) options.onDetail?.(`"${path}" is read together with "${file}"`);
  const { check, checkOpened, tag } = image;
  return await start({ name: path, ...qemuNbd([graphText(image.node)]), check, checkOpened, tag }, options);
}

/** Whatever its user says, what such an image names is not opened: paths in it are of another machine, or of somebody's choice. */
async function openServedImage(
  { device, format }: Extract<ImageRequest, { kind: "device" }>,
  options: RemoteOptions,
  owned?: ChildDevice,
): Promise<ChildDevice> {
  const driver = imageFormat(format);
  const head = new Uint8Array(Math.min(FIRST_HEADER_BYTES, device.size));
  await device.read(0, head);
  const hint =
    "What an image from elsewhere refers to is not opened. json:{…} names such a chain for qemu, on purpose.";
  const served = await ServedSource.open(device, head);
  try {
    // Of what qemu is shown: a second look at the device itself may find another header than the first one did.
    refuseReferences(await readReferences(served.device, driver), device.name, hint);
    const server = { type: "unix", path: pathOfDescriptor(FIRST_INHERITED) };
    const node: ImageNode = { driver, file: { driver: "nbd", server }, backing: null };
    return await start(
      { name: device.name, ...qemuNbd([graphText(node)]), inherit: [served.fd], served, owned },
      options,
    );
  } catch (error) {
    await served[Symbol.asyncDispose]();
    throw error;
  }
}

async function openByQemu(
  { filename, format }: Extract<ImageRequest, { kind: "qemu" }>,
  options: RemoteOptions,
): Promise<ChildDevice> {
  refuseCredentials(filename);
  const json = /^json:/i.test(filename) ? parseJsonImage(filename) : undefined;
  const name = json === undefined ? filename : `json:{${String(json.driver)}…}`;
  const image = json === undefined ? ["--format=raw", "--", filename] : [graphText(json as ImageNode)];
  const renews = json === undefined ? /^ssh:/i.test(filename) : graphText(json as ImageNode).includes('"driver":"ssh"');
  const raw = await start({ name, ...qemuNbd(image), renews }, options);
  if (format === "raw") return raw;
  try {
    return await openServedImage({ kind: "device", device: raw, format }, options, raw);
  } catch (error) {
    await raw[Symbol.asyncDispose]();
    throw error;
  }
}

async function openCommand(words: readonly string[], options: RemoteOptions): Promise<ChildDevice> {
  const [program = ""] = words;
  if (program === "") throw new UsageError("Cannot open [ ]: it names no command");
  return await start({ name: displayCommand(words), words }, options);
}

/**
 * qemu-nbd takes a buffer from malloc(3) for each request, and glibc gives memory of 128 KiB and more back to the kernel each time,
 * which has to zero it again: half of the time that it takes to read a qcow2 image. mallopt(3) says how to keep it.
 */
const KEEP_BUFFERS = { MALLOC_MMAP_THRESHOLD_: String(32 * 2 ** 20), MALLOC_TRIM_THRESHOLD_: String(64 * 2 ** 20) };

/** What qemu-nbd is told besides what to open: to serve it read-only, for as long as we live. */
function qemuNbd(image: readonly string[]): Pick<Start, "words" | "environment" | "isQemu"> {
  const words = ["qemu-nbd", "--read-only", "--persistent", `--shared=${CLIENTS}`, ...image];
  return { words, environment: KEEP_BUFFERS, isQemu: true };
}

function graphText(node: ImageNode): string {
  return `json:${JSON.stringify(node)}`;
}

/** What to start, and as what it is known. */
interface Start {
  name: string;
  words: readonly string[];
  inherit?: readonly number[];
  environment?: Readonly<Record<string, string>>;
  check?: () => Promise<void>;
  /** See `ChildDeviceParts`. */
  checkOpened?: ChildDeviceParts["checkOpened"];
  tag?: string | undefined;
  renews?: boolean;
  /** See `ChildDeviceParts`. */
  isQemu?: boolean;
  served?: ServedSource;
  /** What is disposed of with it. */
  owned?: ChildDevice | undefined;
}

async function start(
  { served, owned, tag, checkOpened, renews = false, isQemu = false, ...started }: Start,
  options: RemoteOptions,
): Promise<ChildDevice> {
  const { name, words } = started;
  const [program = ""] = words;
  try {
    const { signal, onNote, onDetail } = options;
    const onOutput = (line: string): void => onDetail?.(line.startsWith(`${program}: `) ? line : `${program}: ${line}`);
    const { server, opened } = await ChildServer.start(
      { ...started, signal, onNote, onOutput, explain: explainWords },
      async (path, signal) =>
        await NbdDevice.open({ place: { path }, exportName: "" }, { ...options, signal, name, access: "read-only" }),
    );
    const parts = { client: opened, server, served, owned, tag, renews, isQemu, check: started.check, checkOpened };
    return await ChildDevice.open(parts);
  } catch (error) {
    if (error instanceof CloneError && error.hint === LOCKED_HINT) {
      throw new BusyError(error.message, { cause: error, hint: LOCKED_HINT });
    }
    if (!(error instanceof LaunchError) || error.errno !== "ENOENT") throw error;
    const hint = explainMissing(program);
    const message = `Cannot open "${name}": ${program} is not installed`;
    throw new CloneError("failed", message, { cause: error, ...(hint === undefined ? {} : { hint }) });
  }
}
