// A device over HTTP under any reads at once, at a server that now and then is busy, cuts connections, sends other parts
// than were asked for, or other things than parts: what is read is what the object holds.
import fc from "fast-check";
import { expect, test } from "vitest";
import { httpServer, openHttp, type Reply, status } from "../support/http-server.ts";
import { seededRandom } from "../support/random.ts";

const SIZE = 150_001;

/** What a server may do that is to be borne. */
function troubles(random: ReturnType<typeof seededRandom>): Reply[] {
  const cut: Reply = (request, response) => {
    const [first = 0, last = 0] =
      /(\d+)-(\d+)/
        .exec(request.headers.range ?? "")
        ?.slice(1)
        .map(Number) ?? [];
    const length = last - first + 1;
    const fields = { "content-range": `bytes ${first}-${last}/${SIZE}`, "content-length": length, etag: '"one"' };
    const whole = content.subarray(first, last + 1);
    response.writeHead(206, fields).write(whole.subarray(0, random.integer(1, length)), () => response.destroy());
  };
  const shifted: Reply = (request, _response, serve) => {
    const [first = 0, last = 0] =
      /(\d+)-(\d+)/
        .exec(request.headers.range ?? "")
        ?.slice(1)
        .map(Number) ?? [];
    const by = random.integer(1, 1000);
    request.headers.range = `bytes=${Math.max(0, first - by)}-${Math.max(0, last - by)}`;
    serve();
  };
  const short: Reply = (request, response) => {
    const [, first = "0", last = "0"] = /(\d+)-(\d+)/.exec(request.headers.range ?? "") ?? [];
    response.writeHead(206, { "content-range": `bytes ${first}-${last}/${SIZE}`, etag: '"one"' });
    response.end(Buffer.alloc(random.integer(0, Number(last) - Number(first)), 0xbb));
  };
  return [
    status(503),
    status(503, { "retry-after": "1" }),
    status(500, {}, "x".repeat(100_000)),
    (_request, response) => void response.destroy(),
    (_request, _response, serve) => serve({ etag: undefined }),
    (_request, _response, serve) => serve({ "content-range": undefined }),
    (_request, response) => void response.writeHead(200, { etag: '"one"' }).end(Buffer.alloc(SIZE, 0xbb)),
    cut,
    cut,
    shifted,
    short,
  ];
}

const seeds = seededRandom(1);
const content = Buffer.from(Array.from({ length: SIZE }, () => seeds.integer(0, 255)));

test("Random reads equal the object, whatever the server does now and then", { timeout: 120_000 }, async () => {
  await using server = await httpServer({ content });
  const range = fc
    .tuple(fc.nat(SIZE), fc.oneof(fc.nat(2000), fc.nat(SIZE)))
    .map(([offset, length]) => ({ offset, length: Math.min(length, SIZE - offset) }));
  await fc.assert(
    fc.asyncProperty(
      fc.array(range, { minLength: 1, maxLength: 12 }),
      fc.integer(),
      fc.integer({ min: 1, max: 8 }),
      async (ranges, seed, connections) => {
        const random = seededRandom(seed);
        const bad = troubles(random);
        server.always((request, response, serve) =>
          (random.oneIn(4) ? random.pick(bad) : (_q: unknown, _r: unknown, honest: () => void) => honest())(
            request,
            response,
            serve,
          ),
        );
        server.next((_request, _response, serve) => serve());
        const { device } = await openHttp(server, { connections, reconnectTimeoutMs: 600_000 });
        await using _ = device;
        await Promise.all(
          ranges.map(async ({ offset, length }) => {
            const buffer = Buffer.alloc(length + 2, 0xee);
            await device.read(offset, buffer.subarray(1, length + 1));
            const expected = Buffer.concat([
              Buffer.alloc(1, 0xee),
              content.subarray(offset, offset + length),
              Buffer.alloc(1, 0xee),
            ]);
            expect(Buffer.compare(buffer, expected)).toBe(0);
          }),
        );
        expect(device.changed).toBeUndefined();
      },
    ),
    { numRuns: 60 },
  );
});
