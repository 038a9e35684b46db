/** Small programs for a `ChildServer` to start: scripts of Node, which need nothing installed. */

/** The words of a program that runs a script; `socket` in it is the descriptor that it was handed. */
export function nodeProgram(script: string): string[] {
  return [process.execPath, "-e", `const socket = ${SOCKET_FD};${script}`];
}

const SOCKET_FD = 3;

/** Greets everybody who connects with its process id and a line. */
export const GREETER = nodeProgram(`
  require("node:net").createServer((client) => client.on("error", () => {}).end(process.pid + " hello\\n")).listen({ fd: socket });
`);
