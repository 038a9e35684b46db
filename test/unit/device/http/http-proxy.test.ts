// Proxies that the environment names: which one is chosen, and how it is spoken to.
import { createServer, type IncomingMessage } from "node:http";
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net";
import { describe, expect, test } from "vitest";
import { HttpDevice } from "../../../../src/device/http/http-device.ts";
import { proxyFor } from "../../../../src/device/http/proxy-choice.ts";
import { certificates, noOpenSsl } from "../../../support/certificates.ts";
import { HastyClock } from "../../../support/hasty-clock.ts";
import { httpServer, NO_ENVIRONMENT, openHttp, readAll } from "../../../support/http-server.ts";
import { withReason } from "../../../support/scratch.ts";

describe("proxyFor()", () => {
  const P = "http://proxy:3128";
  test.each<[string, Record<string, string>, string | undefined]>([
    ["http://a.example", { http_proxy: P }, P],
    ["http://a.example", { HTTP_PROXY: P }, P],
    ["http://a.example", { HTTP_PROXY: P, REQUEST_METHOD: "GET" }, undefined],
    ["http://a.example", { http_proxy: P, REQUEST_METHOD: "GET" }, P],
    ["http://a.example", { https_proxy: P }, undefined],
    ["https://a.example", { http_proxy: P }, undefined],
    ["https://a.example", { https_proxy: P }, P],
    ["https://a.example", { HTTPS_PROXY: P }, P],
    ["https://a.example", { https_proxy: P, HTTPS_PROXY: "http://other:1" }, P],
    ["https://a.example", { all_proxy: P }, P],
    ["http://a.example", { ALL_PROXY: P, http_proxy: "http://own:1" }, "http://own:1"],
    ["http://a.example", { http_proxy: "proxy:3128" }, P],
    ["http://a.example", { http_proxy: "" }, undefined],
    ["http://a.example", { http_proxy: "https://proxy" }, "https://proxy"],
    ["http://a.example", { http_proxy: P, no_proxy: "*" }, undefined],
    ["http://a.example", { http_proxy: P, NO_PROXY: "a.example" }, undefined],
    ["http://a.example", { http_proxy: P, no_proxy: "b.example, example" }, undefined],
    ["http://a.example", { http_proxy: P, no_proxy: ".example" }, undefined],
    ["http://a.example", { http_proxy: P, no_proxy: "*.example" }, undefined],
    ["http://a.example", { http_proxy: P, no_proxy: "A.EXAMPLE" }, undefined],
    ["http://ba.example", { http_proxy: P, no_proxy: "a.example" }, P],
    ["http://a.example", { http_proxy: P, no_proxy: "a.example:80" }, undefined],
    ["http://a.example", { http_proxy: P, no_proxy: "a.example:81" }, P],
    ["http://a.example:81", { http_proxy: P, no_proxy: "a.example:81" }, undefined],
    ["https://a.example", { https_proxy: P, no_proxy: "a.example:443" }, undefined],
    ["http://[::1]:8080", { http_proxy: P, no_proxy: "::1" }, undefined],
    ["http://[::1]:8080", { http_proxy: P, no_proxy: "[::1]:8080" }, undefined],
    ["http://127.0.0.1", { http_proxy: P, no_proxy: "localhost,127.0.0.1" }, undefined],
    ["http://a.example", { http_proxy: P, no_proxy: ",, ." }, P],
  ])("for %s with %j is %s", (origin, environment, expected) => {
    expect(proxyFor(origin, environment)?.origin).toBe(expected);
  });

  test("takes user and password out of the address", () => {
    const proxy = proxyFor("http://a", { http_proxy: "http://me:p%40ss@proxy:3128" });
    const authorization = `Basic ${Buffer.from("me:p@ss").toString("base64")}`;
    expect(proxy).toEqual({ origin: "http://proxy:3128", authorization });
    expect(proxyFor("http://a", { http_proxy: "http://me:50%@proxy" })?.authorization).toBe(
      `Basic ${Buffer.from("me:50%").toString("base64")}`,
    );
  });

  test.each(["socks5://user:SECRET@proxy:1080", "http://user:SECRET@pro xy", "ftp://SECRET@proxy"])(
    "%s is refused without its password",
    (http_proxy) => {
      expect(() => proxyFor("http://a", { http_proxy })).toThrow(/^Cannot use the proxy .*of http_proxy: /);
      expect(() => proxyFor("http://a", { http_proxy })).not.toThrow(/SECRET/);
    },
  );
});

/** A proxy that passes on what it is asked for, by GET and CONNECT. */
async function proxyServer({ authorization }: { authorization?: string } = {}) {
  const requests: { method: string; url: string; headers: IncomingMessage["headers"] }[] = [];
  const sockets = new Set<Socket>();
  const note = ({ method = "", url = "", headers }: IncomingMessage) => {
    requests.push({ method, url, headers });
    return authorization === undefined || headers["proxy-authorization"] === authorization;
  };
  const server = createServer(async (request, response) => {
    if (!note(request)) return void response.writeHead(407).end("who are you?");
    const { "proxy-authorization": _, connection: __, host: ___, ...headers } = request.headers;
    const from = await fetch(request.url as string, { headers: headers as Record<string, string> });
    const body = Buffer.from(await from.arrayBuffer());
    const { "transfer-encoding": ____, ...fields } = Object.fromEntries(from.headers);
    response.writeHead(from.status, fields).end(body);
  });
  server.on("connect", (request: IncomingMessage, socket: Socket) => {
    if (!note(request)) return void socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
    const [host, port] = (request.url as string).split(":");
    const to = connect(Number(port), host, () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      to.pipe(socket).pipe(to);
    });
    for (const each of [to, socket]) sockets.add(each.on("error", () => {}));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const ME = `Basic ${Buffer.from("me:SECRET").toString("base64")}`;

describe("A proxy", () => {
  test("of http: is asked for whole URLs, as proxies allow it to any port", async () => {
    await using server = await httpServer();
    await using proxy = await proxyServer({ authorization: ME });
    const { device } = await openHttp(server, { environment: { http_proxy: `http://me:SECRET@${proxy.host}` } });
    await using _ = device;
    expect(await readAll(device)).toEqual(server.object.content);
    expect(proxy.requests.map(({ method, url }) => [method, url])).toEqual(Array(2).fill(["GET", server.url]));
    expect(proxy.requests[0]?.headers.host).toBe(new URL(server.url).host);
    expect(JSON.stringify(server.requests)).not.toContain(ME); // for the proxy, not for the server
  });

  test("that wants to know who asks is told of, not shown a password", async () => {
    await using server = await httpServer();
    await using proxy = await proxyServer({ authorization: ME });
    const failed = await openHttp(server, { environment: { http_proxy: `http://me:WRONG@${proxy.host}` } }).catch(
      (e) => e,
    );
    expect(failed).toMatchObject({
      message: `Cannot open "${server.url}": HTTP 407 Proxy Authentication Required`,
      hint: expect.stringContaining("http_proxy"),
    });
    expect(`${failed.stack}${failed.hint}`).not.toContain("WRONG");
  });

  test.skipIf(noOpenSsl)(
    withReason("of https: is asked to CONNECT, and sees nothing of what follows", noOpenSsl),
    async () => {
      await using files = await certificates();
      await using server = await httpServer({ tls: files.server });
      await using proxy = await proxyServer({ authorization: ME });
      const trusted = { SSL_CERT_FILE: `${files.path}/ca-cert.pem` };
      const environment = { ...trusted, https_proxy: `http://me:SECRET@${proxy.host}` };
      const { device } = await openHttp(server, { environment });
      await using _ = device;
      expect(await readAll(device)).toEqual(server.object.content);
      expect(new Set(proxy.requests.map(({ method, url }) => `${method} ${url}`))).toEqual(
        new Set([`CONNECT ${new URL(server.url).host}`]),
      );
      const refused = openHttp(server, { environment: { ...trusted, https_proxy: `http://me:WRONG@${proxy.host}` } });
      await expect(refused).rejects.toMatchObject({
        message: `Cannot open "${server.url}": the proxy refuses to connect (HTTP 407)`,
        hint: expect.stringContaining("https_proxy"),
      });
    },
  );
});

test("A proxy that hangs up on a CONNECT is asked no more often than any other server (fuzz, seed 21, message 46 of http-replies)", async () => {
  let asked = 0;
  const proxy = createTcpServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => {
      asked += 1;
      socket.destroy();
    });
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const https_proxy = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const opened = HttpDevice.open("https://disk.example/x.img", {
    environment: { ...NO_ENVIRONMENT, https_proxy },
    clock: new HastyClock(),
    requestTimeoutMs: 1_000_000,
    reconnectTimeoutMs: 2000,
  });
  await expect(opened).rejects.toThrow(
    /^Cannot open "https:\/\/disk\.example\/x\.img": the proxy closed the connection \(tried \d+ times\)$/,
  );
  expect(asked).toBeLessThan(20);
  await new Promise((resolve) => proxy.close(resolve));
});

describe("A server with TLS", () => {
  test.skipIf(noOpenSsl)(
    withReason("is read where its authority is trusted, and never otherwise", noOpenSsl),
    async () => {
      await using files = await certificates();
      await using server = await httpServer({ tls: files.server });
      for (const variable of ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"]) {
        const { device } = await openHttp(server, { environment: { [variable]: `${files.path}/ca-cert.pem` } });
        await using _ = device;
        expect(await readAll(device)).toEqual(server.object.content);
      }
      const before = process.env.NODE_TLS_REJECT_UNAUTHORIZED;
      process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"; // must not help
      try {
        await expect(openHttp(server)).rejects.toMatchObject({
          message: expect.stringMatching(/the server's certificate is not trusted \([A-Z_]+\)$/),
          hint: expect.stringContaining("SSL_CERT_FILE"),
        });
      } finally {
        if (before === undefined) delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
        else process.env.NODE_TLS_REJECT_UNAUTHORIZED = before;
      }
    },
  );

  test.skipIf(noOpenSsl)(
    withReason("is not read under a name that its certificate does not have", noOpenSsl),
    async () => {
      await using files = await certificates();
      await using server = await httpServer({ tls: files.server, address: "127.0.0.2" });
      const environment = { SSL_CERT_FILE: `${files.path}/ca-cert.pem` };
      await expect(openHttp(server, { environment })).rejects.toThrow(
        "the server's certificate is not trusted (ERR_TLS_CERT_ALTNAME_INVALID)",
      );
    },
  );

  test("that has none is told of", async () => {
    await using server = await httpServer();
    const url = server.url.replace("http:", "https:");
    await expect(openHttp({ url })).rejects.toThrow(`Cannot open "${url}": no TLS connection can be made (`);
  });

  test("is not asked where the authorities cannot be read", async () => {
    await using server = await httpServer();
    const url = server.url.replace("http:", "https:");
    const missing = { SSL_CERT_FILE: "/nonexistent/ca.pem" };
    await expect(openHttp({ url }, { environment: missing })).rejects.toThrow(
      'Cannot read "/nonexistent/ca.pem": ENOENT',
    );
    await expect(openHttp({ url }, { environment: { NODE_EXTRA_CA_CERTS: "/etc/passwd" } })).rejects.toThrow(
      'Cannot use "/etc/passwd": it holds no certificates',
    );
  });

  test("does not send on to a place without TLS", async () => {
    // Checked where it is decided: no server is needed to see that none is asked.
    const { PlainHttp } = await import("../../../../src/device/http/plain-http.ts");
    const service = await PlainHttp.open("https://a.example/x", { environment: { HOME: "/nonexistent" } });
    expect(() => service.follow(service.start(), "http://a.example/y?token=SECRET")).toThrow(
      'Cannot open "https://a.example/x": it redirects from https: to http://a.example/y?…, which is not protected',
    );
    expect(service.follow(service.start(), "//b.example/y")).toEqual({ origin: "https://b.example", path: "/y" });
  });
});
