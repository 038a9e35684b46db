// Opening: what the first reply must be, and what is made of it.
import { writeFile } from "node:fs/promises";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { HttpDevice } from "../../../../src/device/http/http-device.ts";
import { httpServer, NO_ENVIRONMENT, openHttp, type Reply, status } from "../../../support/http-server.ts";
import { until } from "../../../support/nbd-server.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

describe("HttpDevice.open()", () => {
  test("asks for one byte, and takes size, entity tag and time from the reply", async () => {
    await using server = await httpServer();
    const { device } = await openHttp(server);
    await using _ = device;
    expect(device.size).toBe(16_000);
    expect(device.name).toBe(server.url);
    expect(device.readOnly).toBe(true);
    const lastModified = "Wed, 01 Jan 2025 00:00:00 GMT";
    expect(device.identity).toEqual({ kind: "http", size: 16_000, etag: '"one"', lastModified });
    expect(device.changed).toBeUndefined();
    expect(server.requests).toHaveLength(1);
    expect(server.requests[0]?.headers).toMatchObject({ range: "bytes=0-0", "accept-encoding": "identity" });
    expect(server.requests[0]?.headers).not.toHaveProperty("if-match");
  });

  test("a weak entity tag is none to be known again by", async () => {
    await using server = await httpServer({ etag: 'W/"one"', lastModified: undefined });
    const { device } = await openHttp(server);
    await using _ = device;
    expect(device.identity).toEqual({ kind: "http", size: 16_000 });
  });

  test("a fragment is not sent, and a query is", async () => {
    await using server = await httpServer();
    const { device } = await openHttp(server, { path: "/a%20b/d.img?v=1#part" });
    await using _ = device;
    expect(server.requests[0]?.url).toBe("/a%20b/d.img?v=1");
    expect(device.name).toBe(`${server.origin}/a%20b/d.img?v=1`);
  });

  test("a server without ranges is refused, and what it sends is not read", async () => {
    await using server = await httpServer();
    let closed: Promise<void> | undefined;
    server.always((_, response) => {
      response.writeHead(200, { "content-length": String(2 ** 40) });
      response.write(Buffer.alloc(65536));
      closed = new Promise((resolve) => response.on("close", resolve));
    });
    await expect(openHttp(server)).rejects.toMatchObject({
      code: "failed",
      message: `Cannot open "${server.url}": the server sends only the whole of it, no ranges`,
      hint: expect.stringContaining("range requests"),
    });
    await closed; // by us: the server would send a TiB
  });

  test.each<[string, Reply]>([
    ["416 with a total of 0", status(416, { "content-range": "bytes */0" })],
    ["416 without a total", status(416)],
    ["200 with a length of 0", status(200, { "content-length": "0" }, "")],
  ])("an empty object (%s) is refused", async (_, reply) => {
    await using server = await httpServer();
    server.always(reply);
    await expect(openHttp(server)).rejects.toThrow(`Cannot open "${server.url}": it is empty`);
  });

  test.each([
    [401, "EACCES", "HTTP 401 Unauthorized"],
    [403, "EACCES", "HTTP 403 Forbidden"],
    [404, "ENOENT", "HTTP 404 Not Found"],
    [410, "ENOENT", "HTTP 410 Gone"],
    [418, "EIO", "HTTP 418 I'm a Teapot"],
    [501, "EIO", "HTTP 501 Not Implemented"],
  ])("%i is final at once", async (code, errno, text) => {
    await using server = await httpServer();
    server.always(status(code));
    await expect(openHttp(server)).rejects.toMatchObject({ errno, message: `Cannot open "${server.url}": ${text}` });
    expect(server.requests).toHaveLength(1);
  });

  test.each<[string, Record<string, string | undefined>, string]>([
    ["without a Content-Range", { "content-range": undefined }, "without saying which"],
    ["with an unknown total", { "content-range": "bytes 0-0/*" }, "without saying which"],
    ["in another unit", { "content-range": "pages 0-0/16000" }, "without saying which"],
    ["with a total beyond 2^53", { "content-range": "bytes 0-0/99999999999999999" }, "without saying which"],
    ["of other bytes", { "content-range": "bytes 1-1/16000" }, "bytes 1 to 1, not 0 to 0"],
    ["of more bytes", { "content-range": "bytes 0-1/16000" }, "bytes 0 to 1, not 0 to 0"],
    ["beyond its own total", { "content-range": "bytes 0-0/0" }, "without saying which"],
    ["that is compressed", { "content-encoding": "gzip" }, "encoded (gzip)"],
    ["of several ranges", { "content-type": "multipart/byteranges; boundary=x" }, "several ranges"],
  ])("a part %s is refused", async (_, fields, text) => {
    await using server = await httpServer();
    server.always((_request, _response, serve) => serve(fields));
    await expect(openHttp(server)).rejects.toThrow(text);
    expect(server.requests).toHaveLength(1);
  });

  test("a Content-Range that is there twice is refused", async () => {
    await using server = await httpServer();
    server.always((_request, response) => {
      response.setHeader("content-range", ["bytes 0-0/16000", "bytes 0-0/99"]);
      response.writeHead(206, { "content-length": "1" }).end("0");
    });
    await expect(openHttp(server)).rejects.toThrow("without saying which");
  });

  test("a server that is busy is asked again", async () => {
    await using server = await httpServer();
    server.next(status(503), status(429), (_request, response) => void response.destroy());
    const { device, clock } = await openHttp(server);
    await using _ = device;
    expect(clock.pauses).toEqual([75, 150, 300]);
    expect(device.size).toBe(16_000);
  });

  test("a port that nobody listens at, and a host without an address, are final at once", async () => {
    const probe = createServer();
    await new Promise<void>((resolve) => probe.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(probe.address() as AddressInfo).port}/x`;
    await new Promise((resolve) => probe.close(resolve));
    await expect(openHttp({ url })).rejects.toMatchObject({
      errno: "ECONNREFUSED",
      message: `Cannot open "${url}": connection refused (ECONNREFUSED)`,
    });
  });

  test("what is no HTTP is refused", async () => {
    const odd = createServer((socket) => socket.resume().end("SSH-2.0-OpenSSH_9.2\r\n"));
    await new Promise<void>((resolve) => odd.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(odd.address() as AddressInfo).port}/x`;
    await expect(openHttp({ url })).rejects.toThrow(`Cannot open "${url}": its reply is no HTTP`);
    await new Promise((resolve) => odd.close(resolve));
  });

  test("it ends when it is told to", async () => {
    await using server = await httpServer();
    const ending = new AbortController();
    server.always(() => ending.abort(new Error("enough")));
    await expect(openHttp(server, { signal: ending.signal })).rejects.toThrow("enough");
    await expect(openHttp(server, { signal: AbortSignal.abort(new Error("never")) })).rejects.toThrow("never");
  });

  test.each(["http", "https"])("it ends at once while a connection of %s: is being made", async (scheme) => {
    const sockets: Socket[] = [];
    const silent = createServer((socket) => void sockets.push(socket.on("error", () => {}).resume()));
    await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
    const ending = new AbortController();
    const url = `${scheme}://127.0.0.1:${(silent.address() as AddressInfo).port}/x`;
    const opening = openHttp({ url }, { signal: ending.signal });
    await until(() => sockets.length === 1);
    const closed = new Promise((resolve) => sockets[0]?.on("close", resolve));
    ending.abort(new Error("enough"));
    await expect(opening).rejects.toThrow("enough");
    await closed; // or the process would wait for it
    await new Promise((resolve) => silent.close(resolve));
  });

  test.each([
    ["ftp://host/x", "it is no http: or https: URL"],
    ["not a URL", "it is no http: or https: URL"],
    ["http://user:pass@host/x", "a user or password in a URL would be seen by others"],
  ])("%s is wrong usage", async (url, text) => {
    await expect(HttpDevice.open(url, { environment: NO_ENVIRONMENT })).rejects.toMatchObject({
      code: "usage",
      message: expect.stringContaining(text),
    });
  });

  test("a header file that is missing, or says something else, is refused without saying what", async () => {
    await using server = await httpServer();
    await using directory = await scratchDirectory();
    const headerFile = join(directory.path, "headers");
    await expect(openHttp(server, { headerFile })).rejects.toMatchObject({
      code: "failed",
      message: `Cannot read "${headerFile}": no such file (ENOENT)`,
    });
    await writeFile(headerFile, "# a comment\n\nSECRET\n");
    await expect(openHttp(server, { headerFile })).rejects.toMatchObject({
      code: "usage",
      message: `Cannot use "${headerFile}": line 3: it is not \`Name: value\``,
    });
    expect(server.requests).toHaveLength(0);
  });
});
