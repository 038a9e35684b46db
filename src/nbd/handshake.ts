/**
 * Option haggling (NBD "Fixed newstyle negotiation"): what a server answers to each option, and what comes of it. It only
 * decides: bytes, sockets and time are the connection's.
 */
import { blockSizesOf, type ExportTable, type NbdExport, transmissionFlags } from "./export.ts";
import { isValidQuery, listContexts, type SelectedContext, selectContexts } from "./meta-contexts.ts";
import {
  decodeContextQueries,
  decodeInfoRequest,
  decodeText,
  encodeContext,
  encodeExportReply,
  encodeInfo,
  encodeOptionError,
  encodeOptionReply,
  encodeServer,
  type Info,
} from "./option-codec.ts";
import { ClientFlag, InfoType, Option, OptionReply } from "./protocol.ts";
import { ProtocolError } from "./protocol-error.ts";

/** Most data of one option that is looked at, bytes; more is skipped, and answered with NBD_REP_ERR_TOO_BIG. */
export const MAX_OPTION_LENGTH = 65536;

/** Whether a server speaks TLS: never, where the client asks for it, or with nobody without it. */
export type TlsMode = "off" | "on" | "require";

/** What was agreed on when transmission begins. */
export interface Session {
  readonly served: NbdExport;
  /** Replies are structured. */
  readonly structured: boolean;
  /** The client asked for the block sizes, and so has to keep to them. */
  readonly knowsBlockSizes: boolean;
  readonly contexts: readonly SelectedContext[];
}

/** What follows an answer. */
export type Next =
  | { kind: "options" }
  | { kind: "close" }
  | { kind: "tls" }
  | { kind: "transmission"; session: Session };

/** What to send, and what follows once it is sent. */
export interface Answer {
  replies: Buffer[];
  next: Next;
}

/** What the handshake depends on. */
export interface HandshakeOptions {
  exports: ExportTable;
  tls: TlsMode;
  /** Whether the connection is encrypted by now. */
  secure: boolean;
  clientFlags: number;
}

const OPTIONS: Next = { kind: "options" };
const CLOSE: Next = { kind: "close" };

/** One client's option haggling. After STARTTLS begins a new one: nothing said in the clear counts. */
export class Handshake {
  readonly #exports: ExportTable;
  readonly #tls: TlsMode;
  readonly #secure: boolean;
  readonly #clientFlags: number;
  #structured = false;
  #selected: { served: NbdExport; contexts: SelectedContext[] } | undefined;

  constructor({ exports, tls, secure, clientFlags }: HandshakeOptions) {
    this.#exports = exports;
    this.#tls = tls;
    this.#secure = secure;
    this.#clientFlags = clientFlags;
  }

  /** Whether a client's flags are such as a server may go on with. */
  static acceptsFlags(clientFlags: number): boolean {
    return clientFlags <= ClientFlag.fixedNewstyle + ClientFlag.noZeroes;
  }

  /** The client spoke of fixed newstyle, without which it may only name its export. */
  get #fixed(): boolean {
    return this.#clientFlags % 2 === ClientFlag.fixedNewstyle;
  }

  /** Answers an option, whose `data` is all there. */
  answer(option: number, data: Buffer, { shuttingDown }: { shuttingDown: boolean }): Answer {
    if (!this.#fixed && option !== Option.exportName) return { replies: [], next: CLOSE };
    if (option === Option.abort) return { replies: [encodeOptionReply(option, OptionReply.ack)], next: CLOSE };
    if (this.#tls === "require" && !this.#secure && option !== Option.startTls) {
      return this.#refuse(option, OptionReply.errTlsRequired, "this server speaks only TLS");
    }
    if (shuttingDown) return this.#refuse(option, OptionReply.errShutdown, "the server is shutting down");
    try {
      return this.#answer(option, data);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      return this.#refuse(option, OptionReply.errInvalid, error.message);
    }
  }

  /** Answers an option whose data was too long to be kept. */
  answerTooBig(option: number, length: number): Answer {
    const text = `${length} bytes are more than the ${MAX_OPTION_LENGTH} that an option may have`;
    return this.#refuse(option, OptionReply.errTooBig, text);
  }

  #answer(option: number, data: Buffer): Answer {
    switch (option) {
      case Option.exportName:
        return this.#exportName(data);
      case Option.list:
        return this.#list(data);
      case Option.startTls:
        return this.#startTls(data);
      case Option.info:
      case Option.go:
        return this.#info(option, data);
      case Option.structuredReply:
        checkEmpty(data);
        this.#structured = true;
        return acknowledge(option);
      case Option.listMetaContext:
      case Option.setMetaContext:
        return this.#metaContext(option, data);
      default:
        return this.#refuse(option, OptionReply.errUnsupported, `option ${option} is not known`);
    }
  }

  /** The one option that cannot be refused but by closing the connection. */
  #exportName(data: Buffer): Answer {
    const served = this.#exports.find(decodeText(data));
    if (served === undefined) return { replies: [], next: CLOSE };
    const flags = transmissionFlags(served, { structured: this.#structured });
    const zeroes = this.#clientFlags < ClientFlag.noZeroes;
    const reply = encodeExportReply(served.device.size, flags, zeroes);
    return { replies: [reply], next: this.#transmission(served, false) };
  }

  #list(data: Buffer): Answer {
    checkEmpty(data);
    const replies = [...this.#exports].map(({ name, description }) =>
      encodeOptionReply(Option.list, OptionReply.server, encodeServer(name, description)),
    );
    return acknowledge(Option.list, replies);
  }

  #startTls(data: Buffer): Answer {
    if (this.#secure) throw new ProtocolError("TLS is spoken already");
    if (this.#tls === "off") return this.#refuse(Option.startTls, OptionReply.errPolicy, "this server speaks no TLS");
    checkEmpty(data);
    return { ...acknowledge(Option.startTls), next: { kind: "tls" } };
  }

  #info(option: number, data: Buffer): Answer {
    const { name, types } = decodeInfoRequest(data);
    const served = this.#exports.find(name);
    if (served === undefined) return this.#unknown(option, name);
    const flags = transmissionFlags(served, { structured: this.#structured });
    const infos: Info[] = [{ type: InfoType.export, size: served.device.size, flags }];
    if (types.includes(InfoType.name)) infos.push({ type: InfoType.name, name: served.name });
    if (types.includes(InfoType.description) && served.description !== undefined) {
      infos.push({ type: InfoType.description, description: served.description });
    }
    const knowsBlockSizes = types.includes(InfoType.blockSize);
    if (knowsBlockSizes) infos.push({ type: InfoType.blockSize, ...blockSizesOf(served) });
    const replies = infos.map((info) => encodeOptionReply(option, OptionReply.info, encodeInfo(info)));
    const next = option === Option.go ? this.#transmission(served, knowsBlockSizes) : OPTIONS;
    return { ...acknowledge(option, replies), next };
  }

  /** A selection replaces the one before it, also where it fails. */
  #metaContext(option: number, data: Buffer): Answer {
    const set = option === Option.setMetaContext;
    if (set) this.#selected = undefined;
    if (!this.#structured) throw new ProtocolError("structured replies have not been negotiated");
    const { name, queries } = decodeContextQueries(data);
    const served = this.#exports.find(name);
    if (served === undefined) return this.#unknown(option, name);
    const invalid = queries.find((query) => !isValidQuery(query));
    if (invalid !== undefined) throw new ProtocolError(`"${invalid}" begins with no namespace`);
    const contexts = set ? selectContexts(served, queries) : listContexts(served, queries);
    if (set) this.#selected = { served, contexts };
    const replies = contexts.map((context) =>
      encodeOptionReply(option, OptionReply.metaContext, encodeContext(set ? context.id : 0, context.name)),
    );
    return acknowledge(option, replies);
  }

  /** Contexts count only for the export that they were selected for. */
  #transmission(served: NbdExport, knowsBlockSizes: boolean): Next {
    const contexts = this.#selected?.served === served ? this.#selected.contexts : [];
    return { kind: "transmission", session: { served, structured: this.#structured, knowsBlockSizes, contexts } };
  }

  #unknown(option: number, name: string): Answer {
    return this.#refuse(option, OptionReply.errUnknown, `there is no export "${name}"`);
  }

  #refuse(option: number, type: number, text: string): Answer {
    if (option === Option.exportName) return { replies: [], next: CLOSE };
    return { replies: [encodeOptionError(option, type, text)], next: OPTIONS };
  }
}

function acknowledge(option: number, replies: Buffer[] = []): Answer {
  return { replies: [...replies, encodeOptionReply(option, OptionReply.ack)], next: OPTIONS };
}

function checkEmpty(data: Buffer): void {
  if (data.length > 0) throw new ProtocolError(`${data.length} bytes of data where there may be none`);
}
