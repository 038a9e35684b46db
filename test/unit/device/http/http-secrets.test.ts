// Whatever goes wrong, and whatever a server says: no password, header, token or signature is in a name, a note or an error.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { inspect } from "node:util";
import { expect, test } from "vitest";
import { HttpDevice } from "../../../../src/device/http/http-device.ts";
import { httpServer, openHttp, type Reply, readPart, status } from "../../../support/http-server.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const QUERY = "?X-Amz-Credential=SECRET-1&X-Amz-Signature=SECRET-2";

const TROUBLE: [string, Reply][] = [
  ...[400, 401, 403, 404, 407, 410, 412, 416, 418, 429, 500, 503].map((code): [string, Reply] => [
    `HTTP ${code}`,
    (request, response) => {
      // A server that repeats all that it was told.
      const text = inspect(request.headers) + request.url;
      response.writeHead(code, { "retry-after": "1000", "x-echo": request.url as string, etag: '"two"' }).end(text);
    },
  ]),
  ["a redirect to a place with a signature", status(302, { location: "ftp://SECRET-3@host/?sig=SECRET-3" })],
  ["a redirect to no URL", status(302, { location: "http://SECRET-3:SECRET-3@[/" })],
  [
    "a redirect to where nobody listens",
    status(302, { location: "http://SECRET-3:SECRET-3@127.0.0.1:1/?sig=SECRET-3" }),
  ],
  ["no HTTP", (request, response) => void response.socket?.end(`SECRET-3 ${request.url}\r\n`)],
  ["a broken connection", (_request, response) => void response.destroy()],
  ["the whole", (_request, response) => void response.writeHead(200).end("SECRET-3")],
  ["another range", (_q, _r, serve) => serve({ "content-range": "bytes 9-9/16000" })],
  ["an odd encoding", (_q, _r, serve) => serve({ "content-encoding": "gzip" })],
];

test.each(TROUBLE)("%s shows no secret, when it is opened and when it is read", async (_name, reply) => {
  await using directory = await scratchDirectory();
  const [headerFile, netrc] = [join(directory.path, "headers"), join(directory.path, "netrc")];
  await writeFile(headerFile, "X-Token: SECRET-4\nCookie: SECRET-5\n", { mode: 0o644 });
  await writeFile(netrc, "machine 127.0.0.1 login SECRET-6 password SECRET-7\n", { mode: 0o644 });
  await using server = await httpServer();
  const shown: unknown[] = [];
  const note = (line: string) => void shown.push(line);
  const options = { headerFile, environment: { NETRC: netrc }, onNote: note, path: `/disk.img${QUERY}` };

  server.always(reply);
  shown.push(await openHttp(server, { ...options, reconnectTimeoutMs: 200 }).catch((error) => error));
  expect(shown.at(-1)).toBeInstanceOf(Error);

  server.next((_request, _response, serve) => serve());
  const { device } = await openHttp(server, { ...options, reconnectTimeoutMs: 200 });
  await using _ = device;
  server.always(reply);
  shown.push(await readPart(device, 0, 100).catch((error) => error));
  expect(shown.at(-1)).toBeInstanceOf(Error);
  shown.push(device.name, device.identity, device.changed);
  const sent = inspect(server.requests.at(-1), { depth: 5 });
  expect(sent).toContain("SECRET-4"); // they were there to be shown
  expect(sent).toContain("SECRET-2");

  const text = shown
    .map((each) => inspect(each, { depth: 20, showHidden: true }) + (each instanceof Error ? each.stack : ""))
    .join("\n");
  expect(text).not.toMatch(/SECRET/);
  expect(text).not.toContain(Buffer.from("SECRET-6:SECRET-7").toString("base64"));
  expect(device.name).toBe(`${server.origin}/disk.img?…`);
});

test("a URL that is no URL, or has a password, shows none", async () => {
  for (const url of [
    "http://u:SECRET@host:port/",
    "http://u:SECRET@host/",
    "s3://SECRET@x",
    "http://[SECRET?sig=SECRET",
  ]) {
    const failed = await HttpDevice.open(url, { environment: { HOME: "/nonexistent" } }).catch((error) => error);
    expect(failed.code).toBe("usage");
    if (url !== "http://[SECRET?sig=SECRET")
      expect(inspect(failed, { depth: 20, showHidden: true })).not.toMatch(/SECRET/);
  }
});
