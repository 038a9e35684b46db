/** An object at a URL. */
import { DeviceError, UsageError } from "../../base/errors.ts";
import type { Target } from "./connections.ts";
import { type CredentialOptions, Credentials } from "./credentials.ts";
import type { Explanation, HttpService } from "./http-service.ts";
import { safeUrl } from "./safe-url.ts";

/** A URL, and the credentials of whoever asks. */
export class PlainHttp implements HttpService {
  readonly kind = "http";
  readonly name: string;
  readonly #start: Target;
  readonly #credentials: Credentials;

  private constructor(name: string, start: Target, credentials: Credentials) {
    this.name = name;
    this.#start = start;
    this.#credentials = credentials;
  }

  /**
   * Reads the credentials for a URL.
   * @throws {UsageError} where it is no URL of HTTP, or holds a password
   * @throws {CloneError} where a file with credentials cannot be read
   */
  static async open(url: string, options: Omit<CredentialOptions, "origin">): Promise<PlainHttp> {
    const { text: name, hasUserinfo } = safeUrl(url);
    if (hasUserinfo) {
      throw new UsageError(`Cannot open "${name}": a user or password in a URL would be seen by others`, {
        hint: "Put them into ~/.netrc (or the file that NETRC names), or use --header-file FILE.",
      });
    }
    const parsed = URL.canParse(url) ? new URL(url) : undefined;
    if (parsed === undefined || !["http:", "https:"].includes(parsed.protocol)) {
      throw new UsageError(`Cannot open "${name}": it is no http: or https: URL`);
    }
    const start = targetOf(parsed);
    return new PlainHttp(name, start, await Credentials.load({ ...options, origin: start.origin }));
  }

  start(): Target {
    return this.#start;
  }

  async authorize(target: Target): Promise<Record<string, string>> {
    return this.#credentials.fieldsFor(target.origin);
  }

  /** To any host, but never from https: to http:, where everybody on the way reads and changes what is sent. */
  follow(from: Target, location: string): Target {
    const base = `${from.origin}${from.path}`;
    if (!URL.canParse(location, base)) throw this.#refuse("it redirects to what is no URL");
    const to = new URL(location, base);
    if (to.protocol !== "http:" && to.protocol !== "https:") throw this.#refuse(`it redirects to a ${to.protocol} URL`);
    if (to.protocol === "http:" && from.origin.startsWith("https:")) {
      throw this.#refuse(`it redirects from https: to ${safeUrl(to.href).text}, which is not protected`);
    }
    return targetOf(to); // without a user and password that it may hold: they are not ours to send
  }

  pin(target: Target): Target {
    return target;
  }

  async explain(): Promise<Explanation | undefined> {
    return undefined;
  }

  #refuse(why: string): DeviceError {
    return new DeviceError(`Cannot open "${this.name}": ${why}`);
  }
}

function targetOf(url: URL): Target {
  return { origin: url.origin, path: `${url.pathname}${url.search}` };
}
