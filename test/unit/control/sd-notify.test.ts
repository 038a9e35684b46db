// The service manager's side is played by what its manual pages say: a datagram socket that hears lines, variables that name
// sockets. systemd-socket-activate, where it is installed, hands over a real one.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, describe, expect, test, vi } from "vitest";
import { listenDescriptors, ServiceNotifier } from "../../../src/control/sd-notify.ts";
import { SyscallError } from "../../../src/device/syscall.ts";
import { eventually } from "../../support/run-clone.ts";
import { hasProgram, scratchDirectory, withReason } from "../../support/scratch.ts";

afterEach(() => {
  vi.useRealTimers();
});

/** A notifier, what it sends, and the environment it was made from. */
function notifier(environment: Record<string, string | undefined>) {
  const sent: [string, string[]][] = [];
  const made = new ServiceNotifier(environment, (path, data) => void sent.push([path, data.split("\n")]));
  return { made, sent, environment };
}

describe("ServiceNotifier", () => {
  test("tells that the service is ready, how it is, and that it stops", () => {
    const { made, sent } = notifier({ NOTIFY_SOCKET: "/run/systemd/notify" });
    expect(made.isHeard).toBe(true);
    made.ready("serving");
    made.status("50.0 %");
    made.stopping("flushing", { extraMs: 1500 });
    expect(sent).toEqual([
      ["/run/systemd/notify", ["READY=1", "STATUS=serving"]],
      ["/run/systemd/notify", ["STATUS=50.0 %"]],
      ["/run/systemd/notify", ["STOPPING=1", "STATUS=flushing", "EXTEND_TIMEOUT_USEC=1500000"]],
    ]);
  });

  test("never lets a status say anything but a status", () => {
    const { made, sent } = notifier({ NOTIFY_SOCKET: "@abstract" });
    made.status("a\nREADY=1");
    expect(sent).toEqual([["@abstract", ["STATUS=a READY=1"]]]);
  });

  test.for([{}, { NOTIFY_SOCKET: "" }, { NOTIFY_SOCKET: "relative" }, { NOTIFY_SOCKET: "vsock:2:1234" }])(
    "is silent with %j",
    (environment) => {
      const { made, sent } = notifier({ ...environment, WATCHDOG_USEC: "1000" });
      made.ready("serving");
      made.stopping("bye");
      expect(made.isHeard).toBe(false);
      expect(sent).toEqual([]);
    },
  );

  test("takes its variables out of the environment of commands that are started later", () => {
    const { environment } = notifier({ NOTIFY_SOCKET: "/n", WATCHDOG_USEC: "5", WATCHDOG_PID: "1", HOME: "/root" });
    expect(environment).toEqual({ HOME: "/root" });
  });

  test("tells the watchdog twice in its time that it lives, from when it is ready until it is disposed of", () => {
    vi.useFakeTimers();
    const { made, sent } = notifier({ NOTIFY_SOCKET: "/n", WATCHDOG_USEC: "2000000", WATCHDOG_PID: `${process.pid}` });
    vi.advanceTimersByTime(5000);
    expect(sent).toEqual([]);
    made.ready("serving");
    vi.advanceTimersByTime(3500);
    expect(sent.slice(1)).toEqual(Array(3).fill(["/n", ["WATCHDOG=1"]]));
    made[Symbol.dispose]();
    vi.advanceTimersByTime(5000);
    expect(sent).toHaveLength(4);
  });

  test.for([{ WATCHDOG_USEC: "0" }, { WATCHDOG_USEC: "soon" }, { WATCHDOG_USEC: "1000", WATCHDOG_PID: "1" }])(
    "tells no watchdog with %j",
    (environment) => {
      vi.useFakeTimers();
      const { made, sent } = notifier({ NOTIFY_SOCKET: "/n", ...environment });
      made.ready("serving");
      vi.advanceTimersByTime(60_000);
      expect(sent).toHaveLength(1);
    },
  );

  test("goes on where the manager does not listen", () => {
    const made = new ServiceNotifier({ NOTIFY_SOCKET: "/n" }, () => {
      throw new SyscallError("sendto", 111);
    });
    made.ready("serving");
  });

  test("does not hide a mistake of the program", () => {
    const made = new ServiceNotifier({ NOTIFY_SOCKET: "/n" }, () => {
      throw new TypeError("x is not a function");
    });
    expect(() => made.ready("serving")).toThrow(TypeError);
  });

  const noPython = hasProgram("python3") ? undefined : "needs python3";
  test.skipIf(noPython !== undefined)(withReason("reaches a real datagram socket", noPython), async () => {
    await using place = await scratchDirectory();
    const path = join(place.path, "notify");
    const receive = `import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(${JSON.stringify(path)})
print("bound", flush=True)
print(s.recv(4096), flush=True)`;
    const receiver = spawn("python3", ["-c", receive]);
    let heard = "";
    receiver.stdout.setEncoding("utf8").on("data", (text: string) => {
      heard += text;
    });
    await eventually("the receiver listens", () => heard.startsWith("bound"));
    new ServiceNotifier({ NOTIFY_SOCKET: path }).ready("10.0 % hydrated");
    await once(receiver, "close");
    expect(heard).toBe("bound\nb'READY=1\\nSTATUS=10.0 % hydrated'\n");
  });
});

describe("listenDescriptors()", () => {
  test("are those from 3 on, once, and only for this process", () => {
    const environment: Record<string, string | undefined> = {
      LISTEN_PID: `${process.pid}`,
      LISTEN_FDS: "2",
      LISTEN_FDNAMES: "a:b",
      HOME: "/root",
    };
    expect(listenDescriptors(environment)).toEqual([3, 4]);
    expect(environment).toEqual({ HOME: "/root" });
    expect(listenDescriptors(environment)).toEqual([]);
    expect(listenDescriptors({ LISTEN_PID: "1", LISTEN_FDS: "2" })).toEqual([]);
    expect(listenDescriptors({ LISTEN_PID: `${process.pid}`, LISTEN_FDS: "0" })).toEqual([]);
  });

  test.for(["-1", "x", "", "99999999999"])("of the number %j are refused", (count) => {
    expect(() => listenDescriptors({ LISTEN_PID: `${process.pid}`, LISTEN_FDS: count })).toThrow(/LISTEN_FDS is/);
  });

  const noActivation = hasProgram("systemd-socket-activate") ? undefined : "needs systemd-socket-activate";
  test.skipIf(noActivation !== undefined)(
    withReason("can be served, as systemd hands them over", noActivation),
    async () => {
      await using place = await scratchDirectory();
      const path = join(place.path, "s.sock");
      const module = pathToFileURL(join(import.meta.dirname, "../../../dist/control/sd-notify.js")).href;
      const service = `import { createServer } from "node:net";
      const { listenDescriptors } = await import(${JSON.stringify(module)});
      const [fd, ...more] = listenDescriptors();
      const text = JSON.stringify({ fd, more, left: Object.keys(process.env).filter((name) => name.startsWith("LISTEN_")) });
      const server = createServer((socket) => { socket.end(text); server.close(); }).listen({ fd });`;
      const args = ["--listen", path, process.execPath, "--input-type=module", "--eval", service];
      const activating = spawn("systemd-socket-activate", args, { stdio: "ignore" });
      try {
        const said = await eventuallyConnected(path);
        expect(JSON.parse(said)).toEqual({ fd: 3, more: [], left: [] });
        await once(activating, "close");
      } finally {
        activating.kill("SIGKILL"); // it waits for ever for a connection
      }
    },
  );
});

/** What a server says that is about to listen at a path. */
async function eventuallyConnected(path: string): Promise<string> {
  let said = "";
  await eventually("it is served", async () => {
    const socket = connect(path);
    socket.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    socket.on("error", () => {});
    await new Promise((resolve) => socket.on("close", resolve));
    return said !== "";
  });
  return said;
}
