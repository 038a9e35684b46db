/** An HTTP proxy with tunnels alone (CONNECT): whatever host is asked for, all of them lead to one place. */
import { createServer } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";

export interface Tunnel extends AsyncDisposable {
  /** `http://HOST:PORT`, for `https_proxy`. */
  readonly url: string;
  /** `HOST:PORT` of each tunnel that was asked for. */
  readonly asked: readonly string[];
}

/** A proxy on loopback whose tunnels all end at `place`, `HOST:PORT`. */
export async function openTunnel(place: string): Promise<Tunnel> {
  const { hostname, port } = new URL(`tcp://${place}`);
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const keep = (socket: Socket): void => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  };
  const proxy = createServer((_request, response) => response.writeHead(405).end());
  proxy.on("connection", keep);
  proxy.on("connect", (request, client: Socket, head: Buffer) => {
    asked.push(request.url ?? "");
    const server = connect(Number(port), hostname, () => {
      client.write("HTTP/1.1 200 Connection established\r\n\r\n");
      server.write(head);
      server.pipe(client).pipe(server);
    });
    keep(server);
    for (const [one, other] of [[client, server] as const, [server, client] as const]) {
      one.on("error", () => other.destroy()).on("close", () => other.destroy());
    }
  });
  await new Promise<void>((resolve, reject) => proxy.on("error", reject).listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    asked,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => proxy.close(resolve));
    },
  };
}
