// Redirects: followed once, to what they lead to from then on; and who is told what on the way.
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { ChangedError } from "../../../../src/base/errors.ts";
import { httpServer, openHttp, type Reply, readPart, status } from "../../../support/http-server.ts";
import { until } from "../../../support/nbd-server.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

/** Sends on to where `to` says at the moment. */
function redirect(to: string | (() => string), code = 302): Reply {
  return (_request, response) =>
    void response.writeHead(code, { location: typeof to === "string" ? to : to() }).end("elsewhere\n");
}

describe("A redirect", () => {
  test.each([301, 302, 303, 307, 308])("%i is followed when it is opened, and not asked for again", async (code) => {
    await using store = await httpServer();
    await using front = await httpServer();
    front.always(redirect(`${store.origin}/stored?version=3`, code));
    const { device } = await openHttp(front);
    await using _ = device;
    expect(device.name).toBe(front.url);
    expect(device.size).toBe(16_000);
    for (let count = 0; count < 3; count += 1) await readPart(device, 16, 16);
    expect(front.requests).toHaveLength(1);
    expect(store.requests.map(({ url }) => url)).toEqual(Array(4).fill("/stored?version=3"));
  });

  test("may be relative, and lead to another one", async () => {
    await using server = await httpServer();
    server.next(redirect("../b/c"), redirect("?d"), redirect("//localhost:1/"), redirect("/"));
    await expect(openHttp(server, { path: "/a/b/x" })).rejects.toThrow("connection refused"); // at localhost:1
    expect(server.requests.map(({ url }) => url)).toEqual(["/a/b/x", "/a/b/c", "/a/b/c?d"]);
  });

  test("that leads to where nobody answers is told with the place, without what may be a secret in it", async () => {
    await using server = await httpServer();
    server.always(redirect("http://127.0.0.1:1/stored?X-Amz-Signature=SECRET"));
    await expect(openHttp(server)).rejects.toThrow(
      `Cannot open "${server.url}": connection refused (ECONNREFUSED) at "http://127.0.0.1:1/stored?…", where it redirects to`,
    );
  });

  test("that leads back to itself is given up", async () => {
    await using server = await httpServer();
    server.always(redirect("/disk.img"));
    await expect(openHttp(server)).rejects.toThrow(`Cannot open "${server.url}": more than 10 redirects`);
    expect(server.requests).toHaveLength(11);
  });

  test.each([
    ["ftp://host/x", "it redirects to a ftp: URL"],
    ["http://[x", "it redirects to what is no URL"],
    ["file:///etc/passwd", "it redirects to a file: URL"],
  ])("to %s is refused", async (location, text) => {
    await using server = await httpServer();
    server.always(redirect(location));
    await expect(openHttp(server)).rejects.toThrow(`Cannot open "${server.url}": ${text}`);
  });

  test("without a place is refused", async () => {
    await using server = await httpServer();
    server.always(status(302));
    await expect(openHttp(server)).rejects.toThrow("HTTP 302 Found that leads nowhere");
  });

  test("to another origin is not sent the headers of the file, nor the netrc's default", async () => {
    await using directory = await scratchDirectory();
    const [headerFile, netrc] = [join(directory.path, "headers"), join(directory.path, "netrc")];
    await writeFile(headerFile, "X-Token: SECRET-1\nAuthorization: Bearer SECRET-2\n", { mode: 0o600 });
    await writeFile(netrc, "default login me password SECRET-3\n", { mode: 0o600 });
    const environment = { NETRC: netrc };
    await using store = await httpServer();
    await using front = await httpServer();
    front.always(redirect(() => store.url)); // another port is another origin
    const { device } = await openHttp(front, { headerFile, environment });
    await using _ = device;
    await readPart(device, 0, 16);
    expect(front.requests[0]?.headers).toMatchObject({ "x-token": "SECRET-1", authorization: "Bearer SECRET-2" });
    for (const { headers } of store.requests) expect(JSON.stringify(headers)).not.toContain("SECRET");

    // What is at the same origin gets them again.
    front.always(undefined);
    front.next(redirect("/other"));
    const { device: other } = await openHttp(front, { headerFile, environment });
    await using __ = other;
    await readPart(other, 0, 16);
    expect(front.requests.at(-1)).toMatchObject({ url: "/other", headers: { "x-token": "SECRET-1" } });
  });

  test("to another port of a host that the netrc file names is not sent what is kept for it", async () => {
    await using directory = await scratchDirectory();
    const netrc = join(directory.path, "netrc");
    await writeFile(netrc, "machine localhost login me password SECRET\n", { mode: 0o600 });
    await using store = await httpServer();
    await using front = await httpServer();
    const path = `http://localhost:${front.port}/disk.img`;
    front.always(redirect(() => `http://localhost:${store.port}/disk.img`));
    const { device } = await openHttp({ url: path }, { environment: { NETRC: netrc } });
    await using _ = device;
    await readPart(device, 0, 16);
    expect(front.requests[0]?.headers.authorization).toBe(`Basic ${Buffer.from("me:SECRET").toString("base64")}`);
    for (const { headers } of store.requests) expect(headers.authorization).toBeUndefined();
  });

  test("whose user and password are in its URL is followed without them", async () => {
    await using store = await httpServer();
    await using front = await httpServer();
    front.always(redirect(() => store.url.replace("//", "//user:SECRET@")));
    const { device } = await openHttp(front);
    await using _ = device;
    expect(store.requests[0]?.headers.authorization).toBeUndefined();
  });
});

describe("A place that a redirect led to", () => {
  test.each([400, 401, 403, 404, 410, 302])("that answers %i once its time is over is asked for anew", async (code) => {
    await using store = await httpServer();
    await using front = await httpServer();
    let turn = 1;
    front.always(redirect(() => `${store.origin}/signed?turn=${turn}`));
    store.always((request, response, serve) =>
      request.url === `/signed?turn=${turn}`
        ? serve()
        : status(code, { location: "/elsewhere" })(request, response, serve),
    );
    const { device } = await openHttp(front);
    await using _ = device;
    await readPart(device, 0, 16);
    turn = 2;
    const parts = await Promise.all([0, 16, 32, 48].map((offset) => readPart(device, offset, 16)));
    for (const part of parts) expect(part.toString()).toBe("0123456789abcdef");
    expect(front.requests).toHaveLength(2); // one for all of them
    await readPart(device, 0, 16);
    expect(front.requests).toHaveLength(2);
  });

  test("is asked for anew once, also for who learns later that its time is over", async () => {
    await using store = await httpServer();
    await using front = await httpServer();
    let turn = 1;
    front.always(redirect(() => `${store.origin}/signed?turn=${turn}`));
    const { device } = await openHttp(front);
    await using _ = device;
    turn = 2;
    let late: (() => void) | undefined;
    store.next((request, response, serve) => (late = () => status(403)(request, response, serve)));
    const slow = readPart(device, 0, 16);
    await until(() => late !== undefined);
    store.next(status(403));
    await readPart(device, 16, 16); // finds it at turn 2
    late?.();
    expect((await slow).toString()).toBe("0123456789abcdef");
    expect(front.requests).toHaveLength(2);
    expect(store.requests.at(-1)?.url).toBe("/signed?turn=2");
  });

  test("that has the same tag on another size by then is a change", async () => {
    await using store = await httpServer();
    await using front = await httpServer();
    front.always(redirect(() => store.url));
    const { device } = await openHttp(front);
    await using _ = device;
    store.object.content = Buffer.alloc(16_001);
    store.next(status(403));
    await expect(readPart(device, 0, 16)).rejects.toMatchObject({ difference: "its size is 16001 bytes, not 16000" });
  });

  test("that has another object by then is a change", async () => {
    await using store = await httpServer();
    await using front = await httpServer();
    front.always(redirect(() => store.url));
    const { device } = await openHttp(front);
    await using _ = device;
    store.object.etag = '"two"';
    store.next(status(403));
    await expect(readPart(device, 0, 16)).rejects.toMatchObject({
      difference: 'its entity tag is "two", not "one"',
      constructor: ChangedError,
    });
    expect(device.changed).toBe('its entity tag is "two", not "one"');
  });

  test("that is forbidden again after it was asked for anew is refused", async () => {
    await using store = await httpServer();
    await using front = await httpServer();
    front.always(redirect(() => store.url));
    const { device } = await openHttp(front);
    await using _ = device;
    store.always((request, response, serve) =>
      request.headers.range === "bytes=0-0" ? serve() : status(403)(request, response, serve),
    );
    await expect(readPart(device, 0, 16)).rejects.toThrow(`Cannot read 16 bytes at 0 from "${front.url}": HTTP 403`);
    expect(front.requests.length).toBeLessThan(5);
  });

  test("is not asked for anew where the first server itself had the object", async () => {
    await using server = await httpServer();
    const { device } = await openHttp(server);
    await using _ = device;
    server.next(status(403));
    await expect(readPart(device, 0, 16)).rejects.toThrow("HTTP 403");
    expect(server.requests).toHaveLength(2);
  });
});
