/** An HTTP server in this process that serves one object in ranges, as RFC 9110 says, except where a test has it do otherwise. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { HttpDevice, type HttpOpenOptions } from "../../src/device/http/http-device.ts";
import { HastyClock } from "./hasty-clock.ts";

/** Answers a request. `serve` is what an honest server would do; fields given to it are sent in place of its own. */
export type Reply = (
  request: IncomingMessage,
  response: ServerResponse,
  serve: (fields?: Record<string, string | undefined>) => void,
) => void;

/** An object to serve. */
export interface HttpServerOptions {
  content?: Uint8Array;
  etag?: string | undefined;
  lastModified?: string | undefined;
  tls?: { certificate: string; key: string };
  /** Default 127.0.0.1. */
  address?: string;
}

/** What is sent with every request unless a test says otherwise, so that nothing of the machine is used. */
export const NO_ENVIRONMENT = { HOME: "/nonexistent" };

/** A server at a port of its own, until it is disposed of. */
export async function httpServer(options: HttpServerOptions = {}) {
  const object = {
    content: options.content ?? Buffer.from("0123456789abcdef".repeat(1000)),
    etag: "etag" in options ? options.etag : '"one"',
    lastModified: "lastModified" in options ? options.lastModified : "Wed, 01 Jan 2025 00:00:00 GMT",
  };
  const requests: { url: string; headers: IncomingMessage["headers"]; host: string | undefined }[] = [];
  const replies: Reply[] = [];
  const state: { always: Reply | undefined } = { always: undefined };
  const listener = (request: IncomingMessage, response: ServerResponse) => {
    requests.push({ url: request.url as string, headers: request.headers, host: request.headers.host });
    const serve = (fields: Record<string, string | undefined> = {}) => serveObject(object, request, response, fields);
    const reply = replies.shift() ?? state.always ?? ((_request, _response, honest) => honest());
    reply(request, response, serve);
  };
  const server: Server =
    options.tls === undefined
      ? createServer(listener)
      : createTlsServer({ cert: options.tls.certificate, key: options.tls.key }, listener);
  await new Promise<void>((resolve) => server.listen(0, options.address ?? "127.0.0.1", resolve));
  const { port, address } = server.address() as AddressInfo;
  const origin = `${options.tls === undefined ? "http" : "https"}://${address}:${port}`;
  return {
    object,
    /** What was asked, in order. */
    requests,
    server,
    port,
    origin,
    url: `${origin}/disk.img`,
    /** The next requests are answered so, one each. */
    next: (...each: Reply[]) => void replies.push(...each),
    /** Every request that nothing else is said for is answered so. */
    always: (reply: Reply | undefined) => (state.always = reply),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A running server. */
export type TestHttpServer = Awaited<ReturnType<typeof httpServer>>;

/** Opens what it serves, with time that does not pass by itself. */
export async function openHttp(server: { url: string }, options: HttpOpenOptions & { path?: string } = {}) {
  const clock = new HastyClock();
  const url = options.path === undefined ? server.url : new URL(options.path, server.url).href;
  const common = { environment: NO_ENVIRONMENT, clock, random: () => 0.5, requestTimeoutMs: 1_000_000 };
  return { clock, device: await HttpDevice.open(url, { ...common, ...options }) };
}

/** All of a device in one read. */
export async function readAll(device: HttpDevice): Promise<Buffer> {
  return await readPart(device, 0, device.size);
}

/** A part of it. */
export async function readPart(device: HttpDevice, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  await device.read(offset, buffer);
  return buffer;
}

/** A reply of that status, with a short text. */
export function status(code: number, fields: Record<string, string> = {}, text = "no data\n"): Reply {
  return (_request, response) => void response.writeHead(code, fields).end(text);
}

function serveObject(
  { content, etag, lastModified }: { content: Uint8Array; etag: string | undefined; lastModified: string | undefined },
  { headers }: IncomingMessage,
  response: ServerResponse,
  fields: Record<string, string | undefined>,
): void {
  const own = { etag, "last-modified": lastModified, "accept-ranges": "bytes" };
  const send = (code: number, about: Record<string, string> = {}, body: Uint8Array | string = "") => {
    const all = Object.entries({ ...own, ...about, ...fields });
    response.writeHead(code, Object.fromEntries(all.filter((each): each is [string, string] => each[1] !== undefined)));
    response.end(body);
  };
  const modified = headers["if-unmodified-since"];
  const isLater = modified !== undefined && Date.parse(lastModified ?? "") > Date.parse(modified);
  if ((headers["if-match"] !== undefined && headers["if-match"] !== etag) || isLater) {
    send(412);
    return;
  }
  const match = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? "");
  if (match === null || (headers["if-range"] !== undefined && headers["if-range"] !== etag)) {
    send(200, { "content-length": String(content.length) }, content);
    return;
  }
  const [first, last] = [Number(match[1]), Math.min(Number(match[2]), content.length - 1)];
  if (first >= content.length) {
    send(416, { "content-range": `bytes */${content.length}` });
    return;
  }
  const part = content.subarray(first, last + 1);
  const range = `bytes ${first}-${last}/${content.length}`;
  send(206, { "content-range": range, "content-length": String(part.length) }, part);
}
