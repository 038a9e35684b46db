/** Which proxy the environment names for a server: `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`, as for curl. */
import { UsageError } from "../../base/errors.ts";
import type { Environment } from "./credentials.ts";
import { safeUrl } from "./safe-url.ts";

/** A proxy, without its credentials in the address. */
export interface ProxyServer {
  /** `http://host:port`. */
  readonly origin: string;
  /** What Proxy-Authorization is to say. */
  readonly authorization: string | undefined;
}

/**
 * The proxy for an origin, or undefined where the environment names none. Names in lower case come first; HTTP_PROXY does
 * not count in a CGI program, where whoever asks sets it by a header `Proxy`.
 * @throws {UsageError} where it names what cannot be one
 */
export function proxyFor(origin: string, environment: Environment): ProxyServer | undefined {
  const { protocol, hostname, port } = new URL(origin);
  if (isExcepted(hostname, port || (protocol === "https:" ? "443" : "80"), environment)) return undefined;
  const names = protocol === "https:" ? ["https_proxy", "HTTPS_PROXY"] : ["http_proxy", "HTTP_PROXY"];
  const isCgi = (environment.REQUEST_METHOD ?? "") !== "";
  for (const name of [...names, "all_proxy", "ALL_PROXY"]) {
    const value = environment[name] ?? "";
    if (value !== "" && !(name === "HTTP_PROXY" && isCgi)) return parseProxy(value, name);
  }
  return undefined;
}

function parseProxy(value: string, variable: string): ProxyServer {
  const text = /^[a-z][a-z0-9+.-]*:\/\//i.test(value) ? value : `http://${value}`;
  if (!URL.canParse(text)) throw new UsageError(`Cannot use the proxy of ${variable}: it is no URL`);
  const url = new URL(text);
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw new UsageError(
      `Cannot use the proxy "${safeUrl(text).text}" of ${variable}: only http: and https: can be used`,
    );
  }
  const [user, password] = [url.username, url.password].map(decoded);
  const basic = `Basic ${Buffer.from(`${user}:${password}`, "utf8").toString("base64")}`;
  return { origin: url.origin, authorization: url.username === "" ? undefined : basic };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a percent sign that begins no escape: it stands for itself
  }
}

/** Whether `no_proxy` names the host: `*`, the host itself, a domain that it lies in, each with or without a port. */
function isExcepted(hostname: string, port: string, environment: Environment): boolean {
  const list = environment.no_proxy ?? environment.NO_PROXY ?? "";
  const host = hostname.toLowerCase();
  return list.split(/[,\s]+/).some((item) => {
    if (item === "*") return true;
    // An IPv6 address may come without brackets: then it has no port.
    const [, name = `[${item}]`, itemPort = port] = /^(\[.*\]|[^:]*)(?::(\d+))?$/.exec(item.toLowerCase()) ?? [];
    const domain = name.replace(/^\*?\./, "");
    return domain !== "" && itemPort === port && (host === domain || host.endsWith(`.${domain}`));
  });
}
