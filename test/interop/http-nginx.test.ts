// HTTP sources at a real server: nginx.
import { copyFile, rename, rm, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { ChangedError } from "../../src/base/errors.ts";
import { HttpDevice, type HttpOpenOptions } from "../../src/device/http/http-device.ts";
import { certificates } from "../support/certificates.ts";
import { testWith } from "../support/needs.ts";
import { startNginx } from "../support/nginx.ts";
import { seededRandom } from "../support/random.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 9 * 2 ** 20 + 333;
const NGINX = { programs: ["nginx", "openssl"] } as const;

const LOCATIONS = `
  location /busy/ {
    alias $root/;
    if (-f $root/is-busy) { return 503; }
    error_page 503 @busy;
  }
  location @busy { add_header Retry-After 1 always; return 503 "busy\\n"; }
  location /slowly/ { alias $root/; limit_req zone=few burst=1; limit_req_status 429; }
  location /moved/ { return 302 https://localhost:$secure_port/disk.img?$args; }
  location /unranged/ { alias $root/; max_ranges 0; }
  location /private/ { alias $root/; auth_basic private; auth_basic_user_file $root/users; }
  location /packed/ { alias $root/; gzip on; gzip_types *; gzip_min_length 1; etag on; }
  location /untagged/ { alias $root/; etag off; }
`;

/** nginx with an image of random bytes, and whatever a test needs to meet it. */
async function world() {
  const directory = await scratchDirectory();
  const files = await certificates();
  const random = seededRandom(7);
  const content = Buffer.alloc(SIZE);
  for (let at = 0; at + 4 <= SIZE; at += 4) content.writeUInt32LE(random.integer(0, 2 ** 32 - 1), at);
  const image = join(directory.path, "disk.img");
  await writeFile(image, content);
  await writeFile(join(directory.path, "users"), "alice:{PLAIN}wonderland\n");
  await writeFile(join(directory.path, "netrc"), "machine localhost login alice password wonderland\n", {
    mode: 0o600,
  });
  const nginx = await startNginx(directory.path, {
    root: directory.path,
    certificates: files.path,
    locations: LOCATIONS,
    global: "limit_req_zone $server_port zone=few:1m rate=50r/s;",
  });
  const environment = {
    HOME: "/nonexistent",
    SSL_CERT_FILE: join(files.path, "ca-cert.pem"),
    NETRC: join(directory.path, "netrc"),
  };
  return {
    content,
    image,
    nginx,
    path: directory.path,
    open: (path: string, options: HttpOpenOptions & { secure?: boolean } = {}) => {
      const { secure = false, ...rest } = options;
      const origin = secure ? `https://localhost:${nginx.securePort}` : `http://127.0.0.1:${nginx.port}`;
      return HttpDevice.open(`${origin}${path}`, { environment, ...rest });
    },
    async [Symbol.asyncDispose]() {
      await nginx[Symbol.asyncDispose]();
      await files[Symbol.asyncDispose]();
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** Reads all of it in pieces of many sizes at once, and compares. */
async function expectWhole(device: HttpDevice, content: Buffer): Promise<void> {
  expect(device.size).toBe(content.length);
  const random = seededRandom(3);
  const pieces: Promise<void>[] = [];
  for (let offset = 0; offset < content.length; ) {
    const length = Math.min(content.length - offset, random.pick([1, 512, 65536, 2 ** 20 + 1, 5 * 2 ** 20]));
    const buffer = Buffer.alloc(length);
    const expected = content.subarray(offset, offset + length);
    pieces.push(device.read(offset, buffer).then(() => expect(Buffer.compare(buffer, expected)).toBe(0)));
    offset += length;
  }
  await Promise.all(pieces);
}

for (const [name, path, options] of [
  ["over HTTP", "/disk.img", {}],
  ["over HTTPS, by an authority of our own", "/disk.img", { secure: true }],
  ["through a redirect to HTTPS", "/moved/disk.img", {}],
  ["where it would be compressed, if one let it", "/packed/disk.img", {}],
  ["known by its time of change alone", "/untagged/disk.img", {}],
  ["that only alice may read", "/private/disk.img", { secure: true }],
] as const) {
  testWith(NGINX, `nginx has an image ${name}: it is read whole, in pieces of any size`, async () => {
    await using w = await world();
    await using device = await w.open(path, options);
    await expectWhole(device, w.content);
    if (path === "/untagged/disk.img") expect(device.identity).not.toHaveProperty("etag");
    else expect(device.identity.etag).toMatch(/^"[0-9a-f]+-[0-9a-f]+"$/);
    expect(device.changed).toBeUndefined();
    expect(device.incarnation).toBe(0);
  });
}

for (const path of ["/disk.img", "/untagged/disk.img"]) {
  testWith(NGINX, `nginx has another file at ${path} by now: nothing of it is read`, async () => {
    await using w = await world();
    await using device = await w.open(path);
    const buffer = Buffer.alloc(65536);
    await device.read(0, buffer);
    const other = join(w.path, "other");
    await writeFile(other, Buffer.alloc(SIZE, 0xbb));
    await utimes(other, new Date(), new Date(Date.now() + 5_000));
    await rename(other, w.image);
    buffer.fill(0xee);
    await expect(device.read(65536, buffer)).rejects.toBeInstanceOf(ChangedError);
    expect(buffer.every((byte) => byte === 0xee)).toBe(true);
    expect(device.changed).toMatch(/not .* any more$|^its entity tag is/);
  });
}

testWith(NGINX, "nginx is busy for a while: it is asked again when it says so", async () => {
  await using w = await world();
  await using device = await w.open("/busy/disk.img");
  const notes: string[] = [];
  await writeFile(join(w.path, "is-busy"), "");
  const buffer = Buffer.alloc(SIZE);
  const reading = device.read(0, buffer);
  await expect(
    w.open("/busy/disk.img", { reconnectTimeoutMs: 500, onNote: (line) => notes.push(line) }),
  ).rejects.toThrow("HTTP 503 Service Unavailable, and asks to wait 1 s");
  await rm(join(w.path, "is-busy"));
  await reading;
  expect(Buffer.compare(buffer, w.content)).toBe(0);
});

testWith(NGINX, "nginx allows only so many requests: they are sent again until all are answered", async () => {
  await using w = await world();
  await using device = await w.open("/slowly/disk.img");
  await expectWhole(device, w.content);
});

testWith(NGINX, "nginx sends no ranges: it is refused", async () => {
  await using w = await world();
  await expect(w.open("/unranged/disk.img")).rejects.toThrow("the server sends only the whole of it, no ranges");
});

testWith(NGINX, "nginx does not have it, or not for everybody: that is final", async () => {
  await using w = await world();
  await expect(w.open("/none.img")).rejects.toThrow("HTTP 404 Not Found");
  await expect(w.open("/private/disk.img")).rejects.toThrow("HTTP 401 Unauthorized"); // the netrc has another host
  await expect(w.open("/disk.img", { secure: true, environment: { HOME: "/nonexistent" } })).rejects.toThrow(
    "the server's certificate is not trusted",
  );
  await writeFile(join(w.path, "empty.img"), "");
  await expect(w.open("/empty.img")).rejects.toThrow("it is empty");
});

testWith(NGINX, "nginx is stopped and started under way: the read goes on", async () => {
  await using w = await world();
  await using device = await w.open("/disk.img");
  for (let round = 0; round < 3; round += 1) {
    const whole = expectWhole(device, w.content);
    await w.nginx.stop();
    await w.nginx.start();
    await whole;
  }
  // Started again over a copy: another time of change, so another thing.
  await copyFile(w.image, join(w.path, "copy"));
  await w.nginx.stop();
  await rename(join(w.path, "copy"), w.image);
  await utimes(w.image, new Date(), new Date(Date.now() + 9_000));
  await w.nginx.start();
  await expect(device.read(0, Buffer.alloc(10))).rejects.toBeInstanceOf(ChangedError);
});
