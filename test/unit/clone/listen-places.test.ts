import { writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { BusyError, CloneError, UsageError } from "../../../src/base/errors.ts";
import { type ListenTarget, listenIn, listenPlaces } from "../../../src/clone/listen-places.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const NOWHERE = { place: undefined, inherited: [], privateSocket: false, encrypted: false, insecure: false };

describe("listenPlaces()", () => {
  test("refuses an address that others can reach, unless they must encrypt or it is said aloud", async () => {
    const open = { ...NOWHERE, place: { host: "0.0.0.0", port: 0 } };
    await expect(listenPlaces(open)).rejects.toThrow(UsageError);
    expect((await listenPlaces({ ...open, encrypted: true })).targets).toEqual([{ host: "0.0.0.0", port: 0 }]);
    expect((await listenPlaces({ ...open, insecure: true })).targets).toEqual([{ host: "0.0.0.0", port: 0 }]);
    await expect(listenPlaces({ ...NOWHERE, place: { host: "", port: 1 } })).rejects.toThrow(UsageError);
  });

  test("lets loopback pass", async () => {
    expect((await listenPlaces({ ...NOWHERE, place: { host: "127.0.0.1", port: 7 } })).targets).toHaveLength(1);
  });

  test("keeps the name that was given, since certificates are for names", async () => {
    const { targets } = await listenPlaces({ ...NOWHERE, place: { host: "localhost", port: 7 } });
    for (const target of targets) expect(target).toMatchObject({ port: 7, name: "localhost" });
  });

  test("takes the sockets of systemd, but a place that is named before them", async () => {
    expect((await listenPlaces({ ...NOWHERE, inherited: [3, 4] })).targets).toEqual([{ fd: 3 }, { fd: 4 }]);
  });

  test("says what is missing where nothing says where", async () => {
    await expect(listenPlaces(NOWHERE)).rejects.toThrow("Cannot serve: nothing says where to listen");
  });

  test("makes a private socket's directory, and removes it", async () => {
    const places = await listenPlaces({ ...NOWHERE, privateSocket: true });
    const [target] = places.targets as { path: string }[];
    await writeFile(target?.path ?? "", "");
    await places[Symbol.asyncDispose]();
    await expect(writeFile(target?.path ?? "", "")).rejects.toThrow("ENOENT");
  });

  test("replaces a socket that nobody answers, and nothing else", async () => {
    await using directory = await scratchDirectory();
    const path = join(directory.path, "socket");
    const place = { socket: path };
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(path, resolve));
    await expect(listenPlaces({ ...NOWHERE, place })).rejects.toThrow(BusyError);
    await new Promise((resolve) => server.close(resolve));
    await writeFile(path, "a file");
    await expect(listenPlaces({ ...NOWHERE, place })).rejects.toThrow(/something else stands there$/);
  });
});

describe("listenIn()", () => {
  const refusing = (errnos: (string | undefined)[]) => {
    const asked: ListenTarget[] = [];
    const listen = async (target: ListenTarget): Promise<void> => {
      const errno = errnos[asked.push(target) - 1];
      if (errno === undefined) return;
      throw new CloneError("failed", errno, { cause: Object.assign(new Error(errno), { code: errno }) });
    };
    return { asked, listen };
  };
  const places = (need: "all" | "available" | "first") => ({
    targets: [{ fd: 3 }, { fd: 4 }],
    need,
    [Symbol.asyncDispose]: async () => {},
  });

  test("passes over an address of a protocol that this machine does not have", async () => {
    const { asked, listen } = refusing(["EAFNOSUPPORT"]);
    await listenIn(places("available"), listen);
    expect(asked).toHaveLength(2);
  });

  test("fails where no address is to be had, where one is taken, and where all are needed", async () => {
    await expect(listenIn(places("available"), refusing(["EADDRNOTAVAIL", "EADDRNOTAVAIL"]).listen)).rejects.toThrow();
    await expect(listenIn(places("available"), refusing([undefined, "EADDRINUSE"]).listen)).rejects.toThrow();
    await expect(listenIn(places("all"), refusing(["EAFNOSUPPORT"]).listen)).rejects.toThrow();
  });

  test("is content with the first where that will do", async () => {
    const { asked, listen } = refusing([]);
    await listenIn(places("first"), listen);
    expect(asked).toEqual([{ fd: 3 }]);
  });
});
