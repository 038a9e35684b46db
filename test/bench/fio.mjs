// @ts-check
/** Loads an NBD server with fio, and reads what fio measured. */
import { spawn } from "node:child_process";

/**
 * @typedef {object} Load
 * @property {"randread" | "randwrite" | "read" | "write"} rw
 * @property {number} blockSize bytes per request
 * @property {number} depth requests in flight
 * @property {number} size bytes of the export that are used
 * @property {number} [seconds] how long; absent: until each block was read or written once
 */

/**
 * @typedef {object} Measured
 * @property {number} iops requests per second
 * @property {number} bytesPerSecond
 * @property {number} p99 99th percentile of a request's time, seconds
 * @property {number} seconds what it took
 * @property {number} requests how many there were
 */

/**
 * Runs fio over one connection.
 * @param {string} uri
 * @param {Load} load
 * @param {AbortSignal} signal kills it
 * @returns {Promise<Measured>}
 * @throws {Error} when fio fails, or any request does
 */
export async function fio(uri, { rw, blockSize, depth, size, seconds }, signal) {
  const args = [
    "--name=load",
    "--ioengine=nbd",
    `--uri=${uri}`,
    `--rw=${rw}`,
    `--bs=${blockSize}`,
    `--iodepth=${depth}`,
    `--size=${size}`,
    "--randrepeat=0",
    "--output-format=json",
    ...(seconds === undefined ? [] : ["--time_based", `--runtime=${seconds}`, "--norandommap"]),
  ];
  const child = spawn("fio", args, { stdio: ["ignore", "pipe", "pipe"], signal, killSignal: "SIGKILL" });
  let output = "";
  let complaint = "";
  child.stdout.setEncoding("utf8").on("data", (text) => {
    output += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text) => {
    complaint = (complaint + text).slice(-2000);
  });
  /** @type {number | null} */
  const code = await new Promise((resolve, reject) => child.on("error", reject).on("close", resolve));
  if (code !== 0) throw new Error(`fio ${args.join(" ")} exited with ${code}\n${complaint}${output}`.trim());
  // fio says some things before the object.
  const [job] = JSON.parse(output.slice(output.indexOf("{\n"))).jobs;
  if (job.error !== 0) throw new Error(`fio ${args.join(" ")} met error ${job.error}\n${complaint}`.trim());
  const side = rw.endsWith("read") ? job.read : job.write;
  return {
    iops: side.iops,
    bytesPerSecond: side.bw_bytes,
    p99: side.clat_ns.percentile["99.000000"] / 1e9,
    seconds: side.runtime / 1000,
    requests: side.total_ios,
  };
}
