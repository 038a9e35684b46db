/**
 * The words of the NBD protocol: the constants of `doc/proto.md` (NetworkBlockDevice/nbd), by its names. All numbers on
 * the wire are big-endian.
 */

/** First half of the server's greeting: `NBDMAGIC`. */
export const GREETING_MAGIC = 0x4e42444d41474943n;
/** Second half of the greeting, and what every option begins with: `IHAVEOPT`. */
export const OPTION_MAGIC = 0x49484156454f5054n;
/** What every reply to an option begins with. */
export const OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
/** What every request begins with. */
export const REQUEST_MAGIC = 0x25609513;
/** What every simple reply begins with. */
export const SIMPLE_REPLY_MAGIC = 0x67446698;
/** What every chunk of a structured reply begins with. */
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** Bits of the server's 16 handshake flags. */
export const HandshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;
/** Bits of the client's 32 flags. */
export const ClientFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** NBD_OPT_*. */
export const Option = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
  extendedHeaders: 11,
} as const;

/** NBD_REP_*. Those with bit 31 are errors, and may carry a text for people. */
export const OptionReply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsupported: 0x80000001,
  errPolicy: 0x80000002,
  errInvalid: 0x80000003,
  errPlatform: 0x80000004,
  errTlsRequired: 0x80000005,
  errUnknown: 0x80000006,
  errShutdown: 0x80000007,
  errBlockSizeRequired: 0x80000008,
  errTooBig: 0x80000009,
} as const;

/** NBD_INFO_*. */
export const InfoType = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

/** NBD_FLAG_*: what an export can do. */
export const TransmissionFlag = {
  hasFlags: 1,
  readOnly: 2,
  sendFlush: 4,
  sendFua: 8,
  rotational: 16,
  sendTrim: 32,
  sendWriteZeroes: 64,
  sendDf: 128,
  canMultiConn: 256,
  sendCache: 1024,
  sendFastZero: 2048,
} as const;

/** NBD_CMD_*. */
export const Command = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

/** NBD_CMD_FLAG_*. FUA is valid with every command. */
export const CommandFlag = { fua: 1, noHole: 2, df: 4, requestOne: 8, fastZero: 16 } as const;

/** NBD_REPLY_FLAG_DONE: the last chunk of a structured reply. */
export const CHUNK_DONE = 1;

/** NBD_REPLY_TYPE_*. Those with bit 15 are errors. */
export const ChunkType = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

/** The errors that a reply may hold; the numbers are the protocol's, on every system. */
export const NbdErrno = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** The metadata context that the protocol itself defines. */
export const BASE_ALLOCATION = "base:allocation";
/** Bits of `base:allocation`: not allocated; known to read as zeros. */
export const AllocationFlag = { hole: 1, zero: 2 } as const;

/** No string on the wire is longer, bytes of UTF-8. */
export const MAX_STRING_LENGTH = 4096;
/** What a client that has not asked may send or ask for in one request, bytes; nobody may call that an attack. */
export const MAX_PAYLOAD = 32 * 1024 * 1024;

/** Sizes of the fixed parts, bytes. */
export const Size = {
  greeting: 18,
  clientFlags: 4,
  optionHeader: 16,
  optionReplyHeader: 20,
  /** The reply to NBD_OPT_EXPORT_NAME before its zeroes. */
  exportReply: 10,
  exportReplyZeroes: 124,
  request: 28,
  simpleReply: 16,
  chunkHeader: 20,
  /** A chunk's header and the offset that data, or a hole, begins with. */
  dataChunkHeader: 28,
  holeChunk: 32,
} as const;
