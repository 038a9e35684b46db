/**
 * A guest that stays up: jobs are run in it one after the other, and files of this machine are plugged into it as disks and
 * unplugged again, so that many clones meet one boot of the kernel.
 *
 *     test                         guest
 *     ────────────                 ───────────────────────────────────────────────────────────
 *     run(script)  ── virtio ──►   agent (busybox sh)  ──►  sh in /host, this machine's files (9p, read-only),
 *                  ◄── serial ──   output, exit status      with /dev, /proc, /sys of the guest and /mnt, /run empty
 *     attach(file) ── QMP ─────►   a SCSI disk with a volatile write cache, whose flushes and discards reach the file
 *
 * dmsetup, losetup, cmp and, where a job wants it, node and this program are those of this machine.
 */
import assert from "node:assert";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { homedir } from "node:os";
import { join } from "node:path";
import { guestOptions, makeInitramfs } from "../support/guest.ts";
import { eventually } from "../support/run-clone.ts";
import { Qmp } from "./qmp.ts";

const { DMCLONE_KERNEL_LAB, XDG_CACHE_HOME } = process.env;
/** Where test/kernel/setup.sh puts what it builds. */
const LAB = DMCLONE_KERNEL_LAB ?? join(XDG_CACHE_HOME ?? join(homedir(), ".cache"), "dmclone-kernel-lab");
/** In the guest, too. */
export const GUEST_IO = join(LAB, "guest-io");
/** Ends a job that hangs, together with its guest. */
const LONGEST_JOB_MS = 300_000;

const MODULES = [
  ...["virtio_pci", "virtio_scsi", "virtio_console", "sd_mod", "9p", "9pnet_virtio"],
  ...["loop", "dm-mod", "dm-bufio", "dm-persistent-data", "dm-zero", "dm-delay", "crc32c_generic"],
];
const DONE = "guest-job-done";
/** A destination without discard, disks that come and go, and what an emulator on a busy machine does to clocks. */
const NO_COMPLAINT = /discard unsupported: Disabling discard passdown|\] sd \d+:|\] hrtimer:|\] clocksource:|\] rcu: /;

/** A file to plug in as a disk. */
export interface DiskRequest {
  file: string;
  readOnly?: boolean;
}

/** Files as disks of the guest. */
export interface GuestDisks<Name extends string> {
  /** In the guest, as `/dev/sdb`. */
  readonly paths: Readonly<Record<Name, string>>;
  /** Takes them away; nothing in the guest may have them open. */
  detach(): Promise<void>;
}

/** A job that goes on. */
export interface GuestJob {
  /** Lines that it has printed so far. */
  readonly lines: string[];
  /** Resolves when a condition holds, looked at whenever there is another line; rejects where the job ends before. */
  until(condition: () => boolean): Promise<void>;
  /** Resolves to its output; rejects where it ends with another status than 0, or the guest dies. */
  done: Promise<string>;
}

/** One boot. Disposed of, it is killed. */
export class KernelGuest implements AsyncDisposable {
  readonly #qemu: ChildProcess;
  readonly #qmp: Qmp;
  readonly #agent: Socket;
  readonly #console: string;
  readonly #taken = new Set<number>();
  #last: Promise<void> = Promise.resolve();
  #rest = "";
  /** Who waits for another line. */
  #heard: (() => void)[] = [];
  #onLine: (line: string) => void = () => {};
  #onDeath: () => void = () => {};

  private constructor(parts: { qemu: ChildProcess; qmp: Qmp; agent: Socket; console: string }) {
    this.#qemu = parts.qemu;
    this.#qmp = parts.qmp;
    this.#agent = parts.agent;
    this.#console = parts.console;
    parts.agent.setEncoding("utf8").on("data", (text: string) => this.#take(text));
    parts.qemu.once("close", () => this.#onDeath());
  }

  /** Boots one; `place` is an empty directory for its sockets and its initramfs. */
  static async boot(place: string): Promise<KernelGuest> {
    const releaseFile = join(LAB, "release");
    if (!existsSync(releaseFile)) throw new Error(`there is no dm-clone in "${LAB}": test/kernel/setup.sh builds it`);
    const release = readFileSync(releaseFile, "utf8").trim();
    const ownModules = [join(LAB, "dm-clone.ko")];
    const initramfs = await makeInitramfs({ place, modules: MODULES, ownModules, script: AGENT }, release);
    const console = join(place, "console");
    // It ends with the campaign, also where that is killed.
    const qemu = spawn(
      "setpriv",
      [
        ...["--pdeathsig", "KILL", "qemu-system-x86_64"],
        ...guestOptions(release, initramfs),
        ...[
          "-m",
          "768",
          "-smp",
          "2",
          "-serial",
          `file:${console}`,
          "-qmp",
          `unix:${join(place, "qmp")},server=on,wait=off`,
        ],
        ...["-device", "virtio-scsi-pci,id=scsi", "-device", "virtio-serial-pci"],
        ...["-chardev", `socket,id=agent,path=${join(place, "agent")},server=on,wait=off`],
        ...["-device", "virtserialport,chardev=agent,name=agent"],
        ...["-virtfs", "local,path=/,mount_tag=host,security_model=none,multidevs=remap,readonly=on"],
      ],
      { stdio: ["ignore", "ignore", "pipe"] },
    );
    let said = "";
    qemu.stderr?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const guest = await KernelGuest.#connect(qemu, place, console).catch(async (error: unknown) => {
      qemu.kill("SIGKILL");
      throw new Error(`the guest does not start: ${said}`, { cause: error });
    });
    await guest.run("true");
    await guest.kernelLog();
    return guest;
  }

  static async #connect(qemu: ChildProcess, place: string, console: string): Promise<KernelGuest> {
    const socket = join(place, "agent");
    await eventually("QEMU listens", () => existsSync(socket) || qemu.exitCode !== null);
    const agent = createConnection({ path: socket });
    agent.on("error", () => agent.destroy());
    await once(agent, "connect");
    return new KernelGuest({ qemu, qmp: await Qmp.connect(join(place, "qmp")), agent, console });
  }

  /** Runs a shell script, which has to succeed, and resolves to what it printed. */
  run(script: string): Promise<string> {
    return this.start(script).done;
  }

  /** Starts a shell script, after those that were started before it have ended. A command in it that fails ends it. */
  start(script: string): GuestJob {
    assert(!script.includes(DONE));
    const lines: string[] = [];
    const done = this.#last.then(() => this.#runNow(script, lines));
    this.#last = done.then(
      () => {},
      () => {},
    );
    const until = async (condition: () => boolean): Promise<void> => {
      const ended = done.then(() => {
        throw new Error(`the job has ended too soon:\n${script}\nit said:\n${lines.join("\n")}`);
      });
      while (!condition()) await Promise.race([ended, new Promise<void>((resolve) => this.#heard.push(resolve))]);
      ended.catch(() => {});
    };
    return { lines, until, done };
  }

  #runNow(script: string, lines: string[]): Promise<string> {
    return new Promise<string>((resolve, reject) => {
      const fail = (why: string): void => {
        const shown = existsSync(this.#console) ? readFileSync(this.#console, "utf8").slice(-4000) : "";
        reject(
          new Error(`the guest ${why} in this job:\n${script}\nwhich said:\n${lines.join("\n")}\nconsole:\n${shown}`),
        );
      };
      const hang = setTimeout(() => {
        fail("hangs");
        void this.kill9();
      }, LONGEST_JOB_MS);
      const end = (): void => {
        clearTimeout(hang);
        this.#onLine = () => {};
        this.#onDeath = () => {};
      };
      this.#onDeath = () => {
        end();
        fail("died");
      };
      this.#onLine = (line) => {
        const [, status] = new RegExp(`^${DONE} (\\d+)$`).exec(line) ?? [];
        if (status === undefined) {
          lines.push(line);
          return;
        }
        end();
        if (status === "0") resolve(lines.map((text) => `${text}\n`).join(""));
        else fail(`ended with ${status}`);
      };
      if (this.#qemu.exitCode !== null || this.#qemu.signalCode !== null) this.#onDeath();
      else this.#agent.write(`set -eu\n${script}\n${DONE}\n`);
    });
  }

  /** Plugs files in as disks. */
  async attach<Name extends string>(disks: Record<Name, DiskRequest>): Promise<GuestDisks<Name>> {
    const names = Object.keys(disks) as Name[];
    const ids: number[] = [];
    for (const name of names) {
      let id = 0;
      while (this.#taken.has(id)) id += 1;
      assert(id < 256, "no more than 256 disks");
      this.#taken.add(id);
      ids.push(id);
      await this.#plugIn(id, disks[name]);
    }
    const told = await this.run(`for id in ${ids.join(" ")}; do
  i=0
  until [ -e /sys/bus/scsi/devices/0:0:$id:0/block ] && name=$(ls /sys/bus/scsi/devices/0:0:$id:0/block) && [ -b "/dev/$name" ]; do
    i=$((i + 1)); [ $i -lt 1000 ]; sleep 0.02
  done
  echo "/dev/$name"
done`);
    const devices = told.trimEnd().split("\n");
    const paths = Object.fromEntries(names.map((name, index) => [name, devices[index]])) as Record<Name, string>;
    const detach = async (): Promise<void> => {
      for (const id of ids) {
        await this.#qmp.unplug(`disk${id}`);
        await this.#qmp.execute("blockdev-del", { "node-name": `node${id}` });
      }
      await this.run(`for id in ${ids.join(" ")}; do
  i=0; while [ -e /sys/bus/scsi/devices/0:0:$id:0 ]; do i=$((i + 1)); [ $i -lt 1000 ]; sleep 0.02; done
done`);
      for (const id of ids) this.#taken.delete(id);
    };
    return { paths, detach };
  }

  async #plugIn(id: number, { file, readOnly = false }: DiskRequest): Promise<void> {
    // Our own locks are on other bytes than QEMU's; that of the source is shared by several clones.
    const protocol = { driver: "file", filename: file, discard: "unmap", locking: "off", "read-only": readOnly };
    const raw = { driver: "raw", "node-name": `node${id}`, discard: "unmap", "read-only": readOnly };
    await this.#qmp.execute("blockdev-add", { ...raw, file: protocol });
    const device = { driver: "scsi-hd", id: `disk${id}`, drive: `node${id}`, bus: "scsi.0", "scsi-id": id, lun: 0 };
    await this.#qmp.execute("device_add", readOnly ? device : { ...device, "write-cache": "on" });
  }

  /**
   * What the kernel has said since this was asked last: every warning and worse, and all that device-mapper says, but for what
   * is no complaint.
   */
  async kernelLog(): Promise<string[]> {
    const told = await this.run("dmesg --raw; dmesg --clear");
    return told
      .split("\n")
      .map((line) => /^<(\d+)>(.*)$/.exec(line))
      .filter((line) => line !== null)
      .filter(([, level, text = ""]) => Number(level) % 8 <= 4 || text.includes("device-mapper"))
      .map(([, , text = ""]) => text)
      .filter((text) => !NO_COMPLAINT.test(text));
  }

  /** Ends it without a warning; what QEMU has taken from it is in the files. */
  async kill9(): Promise<void> {
    if (this.#qemu.exitCode === null && this.#qemu.signalCode === null) {
      const closed = once(this.#qemu, "close");
      this.#qemu.kill("SIGKILL");
      await closed;
    }
    this.#qmp.close();
    this.#agent.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.kill9();
  }

  #take(text: string): void {
    const lines = `${this.#rest}${text}`.split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#onLine(line.replace(/\r$/, ""));
    for (const wake of this.#heard.splice(0)) wake();
  }
}

/** Runs in the initramfs; jobs run in this machine's files. */
const AGENT = `
mkdir /host
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose host /host
for place in dev proc sys; do mount -o bind /$place /host/$place; done
mount -t tmpfs tmpfs /host/mnt
mount -t tmpfs tmpfs /host/run
mkdir -p /dev/mapper
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name)" != agent ] || exec 3<>/dev/\${port##*/}
done
export DM_DISABLE_UDEV=1 HOME=/mnt TMPDIR=/mnt PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
while true; do
  : > /host/run/job
  while IFS= read -r line <&3 && [ "$line" != ${DONE} ]; do echo "$line" >> /host/run/job; done
  status=0
  chroot /host /bin/sh -c 'cd /mnt && exec /bin/sh /run/job' </dev/null >&3 2>&1 || status=$?
  echo "${DONE} $status" >&3
done
`;
