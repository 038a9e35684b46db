/**
 * The handshake from a client's side (NBD "Fixed newstyle negotiation"), as a dialogue over a stream:
 *
 *     greeting, flags ──► (STARTTLS ──► TLS) ──► STRUCTURED_REPLY ──► SET_META_CONTEXT ──► GO ──► transmission
 *                                                                                      └──► EXPORT_NAME, where GO is not known
 *
 * NBD_OPT_INFO is never asked: nbd-server 3.24 answers it with a size of 0. What a server lacks is done without; what it
 * says is checked here, once, before anybody relies on it.
 */
import {
  decodeContext,
  decodeInfo,
  decodeOptionReplyHeader,
  decodeServer,
  encodeContextQueries,
  encodeInfoRequest,
  encodeOption,
  isErrorReply,
} from "../option-codec.ts";
import {
  BASE_ALLOCATION,
  ClientFlag,
  GREETING_MAGIC,
  HandshakeFlag,
  InfoType,
  MAX_PAYLOAD,
  OPTION_MAGIC,
  Option,
  OptionReply,
  Size,
} from "../protocol.ts";
import { ProtocolError } from "../protocol-error.ts";
import { HandshakeError } from "./handshake-error.ts";
import { serverWords } from "./server-words.ts";

/** What a server says that an export is, checked. Sizes are bytes. */
export interface NegotiatedExport {
  /** More than 0, exact. */
  readonly size: number;
  /** TransmissionFlag. */
  readonly flags: number;
  /** Reads are answered by structured replies. */
  readonly structured: boolean;
  /** The id of `base:allocation`, where the server can tell it. */
  readonly contextId: number | undefined;
  /** Requests have to be multiples of this, a power of two of at most 64 KiB. */
  readonly minimum: number;
  /** Requests are best multiples of this, a power of two. */
  readonly preferred: number;
  /** Most payload of one request, a multiple of `minimum`. */
  readonly maximum: number;
}

/** Whether an export has one of the transmission flags. */
export function offers({ flags }: NegotiatedExport, flag: number): boolean {
  return Math.floor(flags / flag) % 2 === 1;
}

/** A connection in its handshake. */
export interface HandshakeStream {
  /** Exactly `length` bytes, once they are there. Rejects where they never will be. */
  take(length: number): Promise<Buffer>;
  send(bytes: Uint8Array): void;
}

/** What a server greeted with; its flags are answered by then. */
export interface Greeting {
  /** Whether the server sends 124 zeroes behind its reply to NBD_OPT_EXPORT_NAME. */
  readonly zeroes: boolean;
}

/** The second half of the greeting before there were options ("oldstyle"). */
const OLDSTYLE_MAGIC = 0x00420281861253n;
/** Most data of one reply to an option, bytes; the longest that make sense are two strings of 4096. */
const MOST_REPLY_LENGTH = 65536;
/** Most replies to one option; the exports of a list are the only ones that can be many. */
const MOST_REPLIES = 64;
const MOST_LISTED = 4096;
/** Most names of exports that an error shows. */
const MOST_SHOWN = 10;
const LARGEST_MINIMUM = 65536;
const SMALLEST_PREFERRED = 512;
/** What a server that tells no sizes is best asked in. */
const DEFAULT_PREFERRED = 4096;

/** Reads the server's greeting and answers it. @throws {HandshakeError} where it is of another kind */
export async function greet(stream: HandshakeStream): Promise<Greeting> {
  const magic = await stream.take(16);
  if (magic.readBigUInt64BE(0) !== GREETING_MAGIC) throw new HandshakeError("what answers there is no NBD server");
  if (magic.readBigUInt64BE(8) === OLDSTYLE_MAGIC) {
    throw new HandshakeError("the server speaks only the oldstyle handshake, which NBD gave up in 2015");
  }
  if (magic.readBigUInt64BE(8) !== OPTION_MAGIC) throw new ProtocolError("its greeting is none of NBD's");
  const flags = (await stream.take(2)).readUInt16BE(0);
  if (flags % 2 !== HandshakeFlag.fixedNewstyle) {
    throw new HandshakeError("the server does not know the fixed newstyle handshake");
  }
  const zeroes = flags % 4 < HandshakeFlag.noZeroes;
  const answer = Buffer.alloc(Size.clientFlags);
  answer.writeUInt32BE(ClientFlag.fixedNewstyle + (zeroes ? 0 : ClientFlag.noZeroes), 0);
  stream.send(answer);
  return { zeroes };
}

/** Agrees on TLS, which then has to be begun. @throws {HandshakeError} where the server will not: nothing goes on in the clear */
export async function askForTls(stream: HandshakeStream): Promise<void> {
  stream.send(encodeOption(Option.startTls));
  const { type, text } = await lastReply(stream, Option.startTls);
  if (type === OptionReply.ack) return;
  const hint = "An nbd:// URI would go without encryption.";
  if (type === OptionReply.errUnsupported || type === OptionReply.errPolicy) {
    throw new HandshakeError(`the server offers no TLS${text}`, { hint });
  }
  throw new HandshakeError(`the server does not begin TLS${text || `: ${describeReply(type)}`}`);
}

/** Goes from options to the transmission phase. @throws {HandshakeError}, {ProtocolError} */
export async function negotiate(
  stream: HandshakeStream,
  { exportName, zeroes }: { exportName: string } & Greeting,
): Promise<NegotiatedExport> {
  const structured = await askForStructuredReplies(stream);
  const contextId = structured ? await askForAllocation(stream, exportName) : undefined;
  const found = (await go(stream, exportName)) ?? (await askByName(stream, exportName, zeroes));
  return { ...found, structured, contextId };
}

/** What of an export GO or EXPORT_NAME tells. */
type Found = Omit<NegotiatedExport, "structured" | "contextId">;

async function askForStructuredReplies(stream: HandshakeStream): Promise<boolean> {
  stream.send(encodeOption(Option.structuredReply));
  const reply = await lastReply(stream, Option.structuredReply);
  refuseToGoOn(reply);
  return reply.type === OptionReply.ack;
}

/** The id of `base:allocation`; undefined where the server cannot tell it of this export. */
async function askForAllocation(stream: HandshakeStream, exportName: string): Promise<number | undefined> {
  stream.send(encodeOption(Option.setMetaContext, encodeContextQueries(exportName, [BASE_ALLOCATION])));
  let found: number | undefined;
  const last = await lastReply(stream, Option.setMetaContext, ({ type, data }) => {
    if (type !== OptionReply.metaContext) throw unexpected(Option.setMetaContext, type);
    const { id, name } = decodeContext(data);
    if (name !== BASE_ALLOCATION) throw new ProtocolError("it chose a metadata context that was not asked for");
    if (found !== undefined) throw new ProtocolError(`it told ${BASE_ALLOCATION} twice`);
    found = id;
  });
  refuseToGoOn(last);
  return last.type === OptionReply.ack ? found : undefined;
}

/** Undefined where the server does not know the option. */
async function go(stream: HandshakeStream, exportName: string): Promise<Found | undefined> {
  stream.send(encodeOption(Option.go, encodeInfoRequest(exportName, [InfoType.blockSize])));
  let facts: { size: number; flags: number } | undefined;
  let sizes = unknownSizes();
  const last = await lastReply(stream, Option.go, ({ type, data }) => {
    if (type !== OptionReply.info) throw unexpected(Option.go, type);
    const info = decodeInfo(data);
    if (info?.type === InfoType.export) facts = info;
    if (info?.type === InfoType.blockSize) sizes = checkedSizes(info);
  });
  if (last.type === OptionReply.errUnsupported) return undefined;
  refuseToGoOn(last);
  if (last.type === OptionReply.errUnknown) throw await noSuchExport(stream, exportName);
  if (last.type !== OptionReply.ack) {
    throw new HandshakeError(`the server refuses the export "${serverWords(exportName)}": ${last.said}`);
  }
  if (facts === undefined) throw new ProtocolError("it opened the export without telling its size");
  return { size: checkedSize(facts.size), flags: facts.flags, ...sizes };
}

/** The way before there was GO: a server that does not like the name can only hang up. */
async function askByName(stream: HandshakeStream, exportName: string, zeroes: boolean): Promise<Found> {
  stream.send(encodeOption(Option.exportName, Buffer.from(exportName, "utf8")));
  let reply: Buffer;
  try {
    reply = await stream.take(Size.exportReply + (zeroes ? Size.exportReplyZeroes : 0));
  } catch (cause) {
    if (!(cause instanceof Error) || cause instanceof HandshakeError) throw cause;
    throw new HandshakeError(`the server hung up when asked for the export "${serverWords(exportName)}"`, {
      hint: "It may have none of that name.",
      cause,
    });
  }
  const size = reply.readBigUInt64BE(0);
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw new ProtocolError(`a size of ${size} bytes is too large`);
  return { size: checkedSize(Number(size)), flags: reply.readUInt16BE(8), ...unknownSizes() };
}

async function noSuchExport(stream: HandshakeStream, exportName: string): Promise<HandshakeError> {
  const reason =
    exportName === "" ? "the server has no default export" : `the server has no export "${serverWords(exportName)}"`;
  const names = await listExports(stream).catch(() => []); // what went wrong is told already
  if (names.length === 0) return new HandshakeError(reason);
  const shown = names.slice(0, MOST_SHOWN).map((name) => `"${serverWords(name)}"`);
  const more = names.length > shown.length ? ` and ${names.length - shown.length} more` : "";
  return new HandshakeError(reason, { hint: `Its exports are ${shown.join(", ")}${more}.` });
}

/** The names of a server's exports; none where it does not tell. @throws {ProtocolError} */
async function listExports(stream: HandshakeStream): Promise<string[]> {
  stream.send(encodeOption(Option.list));
  const names: string[] = [];
  const collect = ({ type, data }: Reply): void => {
    if (type !== OptionReply.server) throw unexpected(Option.list, type);
    names.push(decodeServer(data).name);
  };
  await lastReply(stream, Option.list, collect, MOST_LISTED);
  return names;
}

interface Reply {
  type: number;
  data: Buffer;
}

/** The reply that ends an option. */
interface LastReply {
  type: number;
  /** ` (the server says: …)`, or nothing. */
  text: string;
  /** Why, in the server's words or else in ours. */
  said: string;
}

/** Reads replies up to the last one, an acknowledgement or an error; `each` is given those before it. */
async function lastReply(
  stream: HandshakeStream,
  option: number,
  each: (reply: Reply) => void = ({ type }) => {
    throw unexpected(option, type);
  },
  most = MOST_REPLIES,
): Promise<LastReply> {
  for (let count = 0; count <= most; count++) {
    const header = decodeOptionReplyHeader(await stream.take(Size.optionReplyHeader), 0);
    if (header.option !== option) throw new ProtocolError(`it answered option ${header.option}, asked was ${option}`);
    if (header.length > MOST_REPLY_LENGTH) {
      throw new ProtocolError(`a reply of ${header.length} bytes to option ${option} is too long`);
    }
    const data = header.length === 0 ? Buffer.alloc(0) : await stream.take(header.length);
    if (isErrorReply(header.type)) {
      const words = serverWords(data.toString("utf8"));
      const said = words === "" ? describeReply(header.type) : `${describeReply(header.type)}: ${words}`;
      return { type: header.type, text: words === "" ? "" : ` (it says: ${words})`, said };
    }
    if (header.type === OptionReply.ack) {
      if (header.length > 0)
        throw new ProtocolError(`its acknowledgement of option ${option} has ${header.length} bytes`);
      return { type: header.type, text: "", said: "" };
    }
    each({ type: header.type, data });
  }
  throw new ProtocolError(`it sent more than ${most} replies to option ${option}`);
}

/** Two errors end the handshake whatever they answer. */
function refuseToGoOn({ type, text }: LastReply): void {
  if (type === OptionReply.errTlsRequired) {
    throw new HandshakeError("the server wants TLS", { hint: "An nbds:// or nbds+unix:// URI speaks TLS." });
  }
  if (type === OptionReply.errShutdown) throw new HandshakeError(`the server is shutting down${text}`);
}

function checkedSize(size: number): number {
  if (size === 0) throw new HandshakeError("the export is empty: the server says that it has 0 bytes");
  return size;
}

type Sizes = Pick<NegotiatedExport, "minimum" | "preferred" | "maximum">;

/** What may be sent to a server that tells nothing of sizes (NBD "Block size constraints"). */
function unknownSizes(): Sizes {
  return { minimum: 1, preferred: DEFAULT_PREFERRED, maximum: MAX_PAYLOAD };
}

function checkedSizes({ minimum, preferred, maximum }: Sizes): Sizes {
  const good =
    isPowerOfTwo(minimum) &&
    minimum <= LARGEST_MINIMUM &&
    isPowerOfTwo(preferred) &&
    preferred >= Math.max(minimum, SMALLEST_PREFERRED) &&
    maximum >= minimum;
  if (!good) throw new ProtocolError(`block sizes of ${minimum}, ${preferred} and ${maximum} bytes make no sense`);
  // More than the usual maximum is not needed; a multiple of the minimum it has to be.
  const most = Math.min(maximum, MAX_PAYLOAD);
  return { minimum, preferred, maximum: most - (most % minimum) };
}

function isPowerOfTwo(value: number): boolean {
  return value >= 1 && Number.isInteger(Math.log2(value));
}

function unexpected(option: number, type: number): ProtocolError {
  return new ProtocolError(`a reply of type ${type} is none to option ${option}`);
}

const REPLIES = new Map<number, string>([
  [OptionReply.errUnsupported, "it does not know the option"],
  [OptionReply.errPolicy, "its policy forbids it"],
  [OptionReply.errInvalid, "it calls the request invalid"],
  [OptionReply.errPlatform, "its platform cannot"],
  [OptionReply.errUnknown, "it has no such export"],
  [OptionReply.errBlockSizeRequired, "it wants block sizes to be agreed on"],
  [OptionReply.errTooBig, "it calls the request too big"],
]);

function describeReply(type: number): string {
  return REPLIES.get(type) ?? `error 0x${type.toString(16)}`;
}
