/** The text that `clone restore` reads: a file, a pipe, standard input. */
import * as fs from "node:fs";
import { Socket } from "node:net";
import { addAbortSignal, type Readable } from "node:stream";
import { promisify } from "node:util";
import { DeviceError, errnoOf } from "../base/errors.ts";
import { inWords } from "../device/open-file.ts";
import { type RestoredDump, readDump } from "../metadata/restore-dump.ts";
import { parsePath } from "./location.ts";

const PIECE_BYTES = 2 ** 16;

const openFd = promisify(fs.open);
const statFd = promisify(fs.fstat);
const closeFd = promisify(fs.close);

/**
 * Reads a dump.
 * @param input path, or `-` for standard input
 * @throws {MetadataError} where it is no dump
 * @throws {DeviceError} where it cannot be read
 * @throws the reason of `signal` when it aborts, also while nobody has opened a pipe for writing yet
 */
export async function readDumpFrom(input: string, signal: AbortSignal | undefined): Promise<RestoredDump> {
  const name = input === "-" ? "standard input" : input;
  let stream: Readable | undefined;
  try {
    stream = input === "-" ? process.stdin : await openText(parsePath(input));
    if (signal !== undefined) addAbortSignal(signal, stream);
    return await readDump(stream, name);
  } catch (error) {
    signal?.throwIfAborted();
    const errno = errnoOf(error);
    if (errno === undefined || error instanceof DeviceError) throw error;
    throw new DeviceError(`Cannot read the dump "${name}": ${inWords(errno)}`, { errno, cause: error });
  } finally {
    stream?.destroy();
  }
}

/**
 * Opens a file or a pipe. To open a pipe waits for whoever writes, and so does a read, each in a thread that nothing can
 * interrupt: so a pipe is opened without waiting, and polled. Until there has been a writer, poll(2) does not call it ended.
 */
async function openText(path: string): Promise<Readable> {
  const fd = await openFd(path, fs.constants.O_RDONLY + fs.constants.O_NONBLOCK);
  try {
    const kind = await statFd(fd);
    if (kind.isFIFO()) return new Socket({ fd, readable: true, writable: false });
    if (kind.isFile()) return fs.createReadStream("", { fd, highWaterMark: PIECE_BYTES });
  } catch (error) {
    await closeFd(fd);
    throw error;
  }
  await closeFd(fd); // a terminal, say, which is to be waited for
  return fs.createReadStream(path, { highWaterMark: PIECE_BYTES });
}
