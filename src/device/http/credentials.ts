/**
 * What proves to a server who asks: header fields from a file, for the origin of the URL that the user gave and no other;
 * user and password from the netrc file, for the host that they are kept for. A netrc file knows no ports. So where the user did
 * not choose the origin, but a redirect did, they are sent to https: on its own port alone: another port may be somebody else's.
 */
import { homedir } from "node:os";
import { join } from "node:path";
import { readCredentialFile } from "../credential-file.ts";
import { MAX_HEADER_FILE, parseHeaderFile } from "./header-file.ts";
import { type Netrc, parseNetrc } from "./netrc.ts";

/** Variables of the environment. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** Where credentials come from. */
export interface CredentialOptions {
  /** `https://host:port` of the URL that the user gave. */
  origin: string;
  headerFile?: string | undefined;
  environment: Environment;
  onNote?: ((line: string) => void) | undefined;
}

const MAX_NETRC = 1024 * 1024;

/** The credentials of one source. */
export class Credentials {
  readonly #origin: string;
  readonly #fields: Readonly<Record<string, string>>;
  readonly #netrc: Netrc | undefined;

  private constructor(origin: string, fields: Readonly<Record<string, string>>, netrc: Netrc | undefined) {
    this.#origin = origin;
    this.#fields = fields;
    this.#netrc = netrc;
  }

  /**
   * Reads the files. A netrc file that NETRC does not name need not be there.
   * @throws {CloneError} where one that is named cannot be read
   * @throws {UsageError} where the header file says something else than headers
   */
  static async load({ origin, headerFile, environment, onNote }: CredentialOptions): Promise<Credentials> {
    const fields =
      headerFile === undefined
        ? {}
        : parseHeaderFile(
            await readCredentialFile(headerFile, { most: MAX_HEADER_FILE, onExposed: onNote }),
            headerFile,
          );
    const { NETRC: named = "", HOME: home = "" } = environment;
    const path = named !== "" ? named : join(home !== "" ? home : homedir(), ".netrc");
    const options = { most: MAX_NETRC, onExposed: onNote };
    const text = await readCredentialFile(path, { ...options, optional: named === "" });
    return new Credentials(origin, fields, text === undefined ? undefined : parseNetrc(text));
  }

  /** What is sent to an origin, names in lower case. */
  fieldsFor(origin: string): Record<string, string> {
    const isOwn = origin === this.#origin;
    const basic = this.#basic(new URL(origin), isOwn);
    return { ...(basic === undefined ? {} : { authorization: basic }), ...(isOwn ? this.#fields : {}) };
  }

  /** `default` is for the host that the user named, not for whatever host that one redirects to. */
  #basic({ hostname, protocol, port }: URL, isOwn: boolean): string | undefined {
    if (!isOwn && (protocol !== "https:" || port !== "")) return undefined;
    const host = hostname.replace(/^\[(.*)\]$/, "$1");
    const entry = this.#netrc?.machines.get(host) ?? (isOwn ? this.#netrc?.fallback : undefined);
    if (entry === undefined || (entry.login === "" && entry.password === "")) return undefined;
    return `Basic ${Buffer.from(`${entry.login}:${entry.password}`, "utf8").toString("base64")}`;
  }
}
