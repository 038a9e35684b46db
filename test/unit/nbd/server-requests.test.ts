// What a server does with requests, over a real socket, against a device in memory: at once where the device can, and
// later where it cannot. Both ways have to give the client the same answers.
import { describe, expect, test } from "vitest";
import { DeviceError } from "../../../src/base/errors.ts";
import { ChunkType, Command, CommandFlag, NbdErrno, Option } from "../../../src/nbd/protocol.ts";
import { NbdClient, requestBytes } from "../../support/nbd-client.ts";
import { testServer } from "../../support/nbd-server.ts";
import { contentBytes } from "../../support/random.ts";
import { ServedMemory, type ServedOptions } from "../../support/served-devices.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 40 * MIB;
const { EINVAL, EIO, ENOSPC, ENOTSUP, EPERM } = NbdErrno;

async function server(options: ServedOptions & { readOnly?: boolean } = {}) {
  return testServer({ device: new ServedMemory(SIZE, options) });
}

const WAYS = [
  { way: "at once", immediate: true, structured: true },
  { way: "at once, simple replies", immediate: true, structured: false },
  { way: "later", immediate: false, structured: true },
  { way: "later, simple replies", immediate: false, structured: false },
];

describe.for(WAYS)("Requests answered $way", ({ immediate, structured }) => {
  test.for([1, 511, 4096, 65535, 65536, 65537, 256 * KIB, MIB + 1, 32 * MIB])(
    "%i bytes written are read again, wherever they are",
    async (length) => {
      await using served = await server({ immediate });
      await using client = await NbdClient.go(served, { structured });
      const data = contentBytes(length);
      for (const offset of [0, 4097, SIZE - length]) {
        expect(await client.write(offset, data)).toMatchObject({ error: 0 });
        expect(served.device.bytes.subarray(offset, offset + length).equals(data)).toBe(true);
        const { error, data: read } = await client.read(offset, length);
        expect(error).toBe(0);
        expect(read.equals(data)).toBe(true);
      }
    },
  );

  test("requests sent all at once are all answered", async () => {
    await using served = await server({ immediate });
    await using client = await NbdClient.go(served, { structured });
    const data = contentBytes(4096);
    const requests = [];
    for (let index = 0; index < 600; index++) {
      requests.push(requestBytes({ type: Command.write, offset: index * 4096, data, cookie: index }));
    }
    client.send(Buffer.concat(requests));
    const cookies = new Set<number>();
    for (let index = 0; index < 600; index++) cookies.add((await client.reply()).cookie);
    expect(cookies.size).toBe(600);
    for (let index = 0; index < 600; index++) {
      client.post({ type: Command.read, offset: index * 4096, length: 4096, cookie: index });
    }
    for (let index = 0; index < 600; index++) expect((await client.reply()).data.equals(data)).toBe(true);
  });

  test("zeros come back as zeros, in holes where that is allowed", async () => {
    await using served = await server({ immediate });
    served.device.bytes.fill(1, 128 * KIB, 192 * KIB);
    await using client = await NbdClient.go(served, { structured });
    for (const flags of structured ? [0, CommandFlag.df] : [0]) {
      const { data, chunks } = await client.read(0, 256 * KIB, flags);
      expect(data.equals(served.device.bytes.subarray(0, 256 * KIB))).toBe(true);
      const { offsetData, offsetHole } = ChunkType;
      const sparse = flags === 0 ? [offsetHole, offsetData, offsetHole] : [offsetData];
      expect(chunks).toEqual(structured ? sparse : []);
    }
  });

  test("what is out of range is refused, and the next request is answered", async () => {
    await using served = await server({ immediate });
    await using client = await NbdClient.go(served, { structured });
    for (const [offset, length] of [
      [SIZE, 1],
      [SIZE - 1, 2],
      [2 ** 40, 512],
      [Number.MAX_SAFE_INTEGER, 1],
    ] as const) {
      expect((await client.read(offset, length)).error).toBe(EINVAL);
      expect((await client.write(offset, Buffer.alloc(length))).error).toBe(ENOSPC);
      expect((await client.request({ type: Command.writeZeroes, offset, length })).error).toBe(ENOSPC);
      expect((await client.request({ type: Command.trim, offset, length })).error).toBe(EINVAL);
      expect((await client.request({ type: Command.cache, offset, length })).error).toBe(EINVAL);
    }
    expect((await client.read(0, 512)).error).toBe(0);
    expect(served.device.log.filter((line) => !line.startsWith("read") && !line.startsWith("tryRead"))).toEqual([]);
  });

  test("a payload over 32 MiB is refused, and the next request is answered", async () => {
    await using served = await server({ immediate });
    await using client = await NbdClient.go(served, { structured });
    expect((await client.read(0, 32 * MIB + 1)).error).toBe(EINVAL);
    expect((await client.write(0, Buffer.alloc(32 * MIB + 1, 1))).error).toBe(EINVAL);
    const { error, data } = await client.read(0, 512);
    expect([error, data.equals(Buffer.alloc(512))]).toEqual([0, true]);
  });

  test("requests of no bytes succeed and do nothing", async () => {
    await using served = await server({ immediate });
    await using client = await NbdClient.go(served, { structured });
    for (const type of [Command.read, Command.write, Command.trim, Command.writeZeroes, Command.cache]) {
      for (const offset of [0, SIZE]) expect((await client.request({ type, offset, length: 0 })).error).toBe(0);
    }
    expect(served.device.log.filter((line) => !line.startsWith("tryWrite") && !line.startsWith("write "))).toEqual([]);
  });
});

describe("Commands", () => {
  test("flush, trim, zeroes and cache get to the device with their flags", async () => {
    await using served = await server();
    await using client = await NbdClient.go(served);
    const { fua, noHole, fastZero } = CommandFlag;
    const range = { offset: 512, length: 1024 };
    await client.write(512, Buffer.alloc(4), fua);
    await client.request({ type: Command.flush });
    await client.request({ type: Command.trim, ...range });
    await client.request({ type: Command.trim, ...range, flags: fua });
    await client.request({ type: Command.writeZeroes, ...range });
    await client.request({ type: Command.writeZeroes, ...range, flags: noHole + fastZero + fua });
    await client.request({ type: Command.cache, ...range });
    expect(served.device.log).toEqual([
      "write 512 4 fua",
      "flush 0 0",
      "discard 512 1024",
      "discard 512 1024 fua",
      "zero 512 1024",
      "zero 512 1024 fua fast no-hole",
      "hint 512 1024",
    ]);
  });

  test("zeroes and trim may be longer than any payload", async () => {
    await using served = await server();
    await using client = await NbdClient.go(served);
    for (const type of [Command.writeZeroes, Command.trim, Command.cache]) {
      expect((await client.request({ type, length: SIZE })).error).toBe(0);
    }
  });

  test("FUA is taken with every command", async () => {
    await using served = await server();
    await using client = await NbdClient.go(served, { contexts: ["base:allocation"] });
    for (const type of [Command.read, Command.write, Command.flush, Command.trim, Command.cache, Command.writeZeroes]) {
      expect((await client.request({ type, flags: CommandFlag.fua })).error).toBe(0);
    }
    const status = { type: Command.blockStatus, length: 512, flags: CommandFlag.fua };
    expect((await client.request(status)).error).toBe(0);
  });

  test("a write with FUA is one to the device too, whatever its size, though it could be done at once", async () => {
    await using served = await server();
    await using client = await NbdClient.go(served);
    for (const length of [1, 4096, 100 * KIB, MIB]) {
      expect((await client.write(0, Buffer.alloc(length, 1), CommandFlag.fua)).error).toBe(0);
      expect(served.device.log.at(-1)).toBe(`write 0 ${length} fua`);
    }
  });

  test("a flag that is not the command's, or an unknown command, is refused and nothing is done", async () => {
    await using served = await server();
    await using client = await NbdClient.go(served);
    await using simple = await NbdClient.go(served, { structured: false });
    const { noHole, df, requestOne, fastZero } = CommandFlag;
    const wrong: [number, number[]][] = [
      [Command.read, [noHole, requestOne, fastZero, 32, 0x8000]],
      [Command.write, [noHole, df, requestOne, fastZero, 0x4000]],
      [Command.flush, [noHole, df]],
      [Command.trim, [noHole, df, requestOne, fastZero]],
      [Command.cache, [noHole, df]],
      [Command.writeZeroes, [df, requestOne, 32]],
      [8, [0]],
      [0xffff, [0, 1]],
    ];
    for (const [type, flagSets] of wrong) {
      for (const flags of flagSets) {
        const request = { type, flags, length: 8, ...(type === Command.write ? { data: Buffer.alloc(8) } : {}) };
        expect((await client.request(request)).error, `${type} ${flags}`).toBe(EINVAL);
        expect((await simple.request(request)).error, `${type} ${flags}`).toBe(EINVAL);
      }
    }
    expect((await simple.read(0, 8, df)).error).toBe(EINVAL); // was never offered
    expect(served.device.log).toEqual([]);
  });

  test("what cannot be zeroed fast is ENOTSUP; a plain zero is never ENOTSUP, whatever the device says", async () => {
    await using served = await server({ fastZero: false });
    await using client = await NbdClient.go(served);
    const zero = { type: Command.writeZeroes, length: 4096 };
    expect((await client.request({ ...zero, flags: CommandFlag.fastZero })).error).toBe(ENOTSUP);
    expect((await client.request(zero)).error).toBe(0);
    await using failing = await server({ before: () => Promise.reject(new DeviceError("no", { errno: "ENOTSUP" })) });
    await using other = await NbdClient.go(failing);
    expect((await other.request(zero)).error).toBe(EIO);
    expect((await other.request({ type: Command.trim, length: 512, flags: 0 })).error).toBe(EIO);
  });

  test("a read-only export refuses all that changes it with EPERM, even what is out of range, and is read", async () => {
    for (const readOnly of [true, false]) {
      const device = new ServedMemory(SIZE, { readOnly });
      await using served = await testServer({ device, exports: [{ name: "", device, readOnly: !readOnly }] });
      await using client = await NbdClient.go(served);
      for (const type of [Command.write, Command.trim, Command.writeZeroes]) {
        for (const offset of [0, SIZE]) {
          const data = type === Command.write ? { data: Buffer.alloc(8) } : {};
          expect((await client.request({ type, offset, length: 8, ...data })).error).toBe(EPERM);
        }
      }
      expect((await client.read(0, 8)).error).toBe(0);
      expect((await client.request({ type: Command.flush })).error).toBe(0);
    }
  });

  test("a client that asked for the block sizes has to keep to the least, another need not", async () => {
    const device = new ServedMemory(SIZE);
    const blockSizes = { minimum: 512, preferred: 4096, maximum: MIB };
    await using served = await testServer({ device, exports: [{ name: "", device, readOnly: false, blockSizes }] });
    await using asked = await NbdClient.go(served);
    await using never = await NbdClient.go(served, { types: [] });
    for (const [offset, length] of [
      [1, 512],
      [0, 513],
      [511, 1],
    ] as const) {
      expect((await asked.read(offset, length)).error).toBe(EINVAL);
      expect((await asked.write(offset, Buffer.alloc(length))).error).toBe(EINVAL);
      expect((await never.read(offset, length)).error).toBe(0);
      expect((await never.write(offset, Buffer.alloc(length))).error).toBe(0);
    }
    expect((await asked.read(512, 1024)).error).toBe(0);
    expect((await asked.read(0, MIB + 512)).error).toBe(EINVAL);
  });

  test("a request cut off by DISC's sender is not done, what came before it is answered", async () => {
    await using served = await server();
    await using client = await NbdClient.go(served);
    client.send(
      Buffer.concat([
        requestBytes({ type: Command.write, offset: 0, data: Buffer.alloc(8, 1), cookie: 1 }),
        requestBytes({ type: Command.disconnect }),
        requestBytes({ type: Command.write, offset: 8, data: Buffer.alloc(8, 1), cookie: 2 }),
      ]),
    );
    expect((await client.reply()).cookie).toBe(1);
    expect((await client.closed()).length).toBe(0);
    expect(served.device.log).toEqual(["tryWrite 0 8"]);
  });

  test("DISC waits for what is in flight", async () => {
    await using served = await server({ before: () => new Promise((resolve) => setTimeout(resolve, 30)) });
    await using client = await NbdClient.go(served);
    client.post({ type: Command.read, length: 512, cookie: 7 });
    client.post({ type: Command.disconnect });
    expect((await client.reply()).cookie).toBe(7);
    await client.closed();
  });

  test("a client that ends its stream still gets the answers to what it asked", async () => {
    await using served = await server({ before: () => new Promise((resolve) => setTimeout(resolve, 30)) });
    await using client = await NbdClient.go(served);
    client.post({ type: Command.read, length: 512, cookie: 7 });
    client.socket.end();
    expect((await client.reply()).cookie).toBe(7);
    await client.closed();
  });
});

describe("Errors of the device", () => {
  test.for([
    ["EIO", EIO],
    ["ENOSPC", ENOSPC],
    ["EDQUOT", ENOSPC],
    ["EFBIG", ENOSPC],
    ["EPERM", EPERM],
    ["EROFS", EPERM],
    ["EINVAL", EINVAL],
    ["ENOTSUP", EIO],
    ["ECONNRESET", EIO],
    ["EAGAIN", EIO],
  ] as const)(
    "%s reaches the client as %i, with its message, and the connection goes on",
    async ([errno, expected]) => {
      let fail = true;
      const before = () => {
        if (fail) throw new DeviceError(`Cannot do it: ${errno}`, { errno });
      };
      await using served = await server({ before });
      await using client = await NbdClient.go(served, { contexts: ["base:allocation"] });
      await using simple = await NbdClient.go(served, { structured: false });
      const requests = [
        Command.read,
        Command.write,
        Command.flush,
        Command.trim,
        Command.writeZeroes,
        Command.blockStatus,
      ];
      for (const type of requests) {
        const request = {
          type,
          length: type === Command.flush ? 0 : 8,
          ...(type === Command.write ? { data: Buffer.alloc(8) } : {}),
        };
        expect(await client.request(request)).toMatchObject({ error: expected, text: `Cannot do it: ${errno}` });
        if (type !== Command.blockStatus) expect((await simple.request(request)).error).toBe(expected);
      }
      fail = false;
      expect((await client.read(0, 8)).error).toBe(0);
      expect((await simple.read(0, 8)).error).toBe(0);
    },
  );

  test("an error thrown by a read or write at once is told like any other", async () => {
    await using served = await server();
    const throwing = () => {
      throw new DeviceError("Cannot do it", { errno: "ENOSPC" });
    };
    Object.assign(served.device, { tryRead: throwing, tryWrite: throwing });
    await using client = await NbdClient.go(served);
    for (const length of [8, 128 * KIB]) {
      expect(await client.read(0, length)).toMatchObject({ error: ENOSPC, text: "Cannot do it" });
      expect(await client.write(0, Buffer.alloc(length))).toMatchObject({ error: ENOSPC, text: "Cannot do it" });
    }
  });

  test("what is no operating error is EIO, and tells nothing of itself", async () => {
    await using served = await server({
      before: () => {
        throw new RangeError("a secret");
      },
    });
    await using client = await NbdClient.go(served);
    expect(await client.read(0, 8)).toMatchObject({ error: EIO, text: "the server failed" });
  });

  test("a long message is cut", async () => {
    await using served = await server({
      before: () => {
        throw new DeviceError("x".repeat(70_000), { errno: "EIO" });
      },
    });
    await using client = await NbdClient.go(served);
    expect((await client.read(0, 8)).text).toBe("x".repeat(4096));
  });
});

describe("Block status", () => {
  const hydrated = {
    name: "x-clone:hydrated",
    runs: (_offset: number, length: number, most: number) =>
      [
        { length: 512, flags: 1 },
        { length: length - 512, flags: 0 },
      ].slice(0, most),
  };

  test("tells every context that was selected, under its id", async () => {
    await using served = await server({ contexts: [hydrated] });
    await using client = await NbdClient.go(served, { contexts: ["base:allocation", "x-clone:hydrated"] });
    await client.write(4096, Buffer.alloc(4096, 1), CommandFlag.fua);
    const { status, chunks } = await client.request({ type: Command.blockStatus, length: 16384 });
    expect(chunks).toEqual([ChunkType.blockStatus, ChunkType.blockStatus]);
    expect([...status.values()]).toEqual([
      [
        { length: 4096, flags: 3 },
        { length: 4096, flags: 0 },
        { length: 8192, flags: 3 },
      ],
      [
        { length: 512, flags: 1 },
        { length: 15872, flags: 0 },
      ],
    ]);
    const one = await client.request({ type: Command.blockStatus, length: 16384, flags: CommandFlag.requestOne });
    expect([...one.status.values()]).toEqual([[{ length: 4096, flags: 3 }], [{ length: 512, flags: 1 }]]);
  });

  test("without a context, of no bytes or beyond the end it is refused", async () => {
    await using served = await server();
    await using without = await NbdClient.go(served);
    expect((await without.request({ type: Command.blockStatus, length: 512 })).error).toBe(EINVAL);
    await using client = await NbdClient.go(served, { contexts: ["base:allocation"] });
    for (const [offset, length] of [
      [0, 0],
      [0, SIZE + 1],
      [SIZE, 1],
    ] as const) {
      expect((await client.request({ type: Command.blockStatus, offset, length })).error).toBe(EINVAL);
    }
  });
});

test("clients that know only EXPORT_NAME are served, with simple replies", async () => {
  await using served = await server();
  await using client = await NbdClient.connect(served);
  await client.greet(Buffer.from([0, 0, 0, 1]));
  client.send(Buffer.concat([Buffer.from("49484156454f505400000001" + "00000004", "hex"), Buffer.from("disk")]));
  const reply = await client.take(134);
  expect(Number(reply.readBigUInt64BE(0))).toBe(SIZE);
  expect(reply.subarray(10).every((byte) => byte === 0)).toBe(true);
  expect((await client.write(0, Buffer.from("hello"))).error).toBe(0);
  expect((await client.read(0, 5)).data.toString()).toBe("hello");
});

test("several connections see each other's writes, and a flush on one is the device's", async () => {
  await using served = await server();
  await using one = await NbdClient.go(served);
  await using two = await NbdClient.go(served);
  await one.write(0, Buffer.from("hello"));
  expect((await two.read(0, 5)).data.toString()).toBe("hello");
  expect((await two.request({ type: Command.flush })).error).toBe(0);
  expect(served.device.log).toContain("flush 0 0");
});

test("counters tell what was done", async () => {
  await using served = await server();
  await using client = await NbdClient.go(served);
  await client.write(0, Buffer.alloc(100));
  await client.read(0, 50);
  await client.read(SIZE, 50);
  await client.request({ type: 99 });
  const { commands, unknown, connections, requestsInFlight } = served.server.counters;
  expect(commands.write).toEqual({ requests: 1, bytes: 100, errors: 0 });
  expect(commands.read).toEqual({ requests: 2, bytes: 100, errors: 1 });
  expect([unknown.errors, connections, requestsInFlight, served.server.connections]).toEqual([1, 1, 0, 1]);
});

test("ABORT is answered and the connection ends", async () => {
  await using served = await server();
  await using client = await NbdClient.connect(served);
  await client.greet();
  expect((await client.option(Option.abort)).map(({ type }) => type)).toEqual([1]);
  expect((await client.closed()).length).toBe(0);
});
