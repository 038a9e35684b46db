import { Command } from "./protocol.ts";

/** The commands by their names, as metrics show them. */
export type CommandName = keyof typeof Command;

/** What was asked by one kind of command. */
export interface CommandCounter {
  requests: number;
  /** Bytes asked for, or sent, or affected. */
  bytes: number;
  /** Requests answered with an error. */
  errors: number;
}

/** What a server has done so far. The counters only grow; whoever shows them reads them when asked. */
export class ServerCounters {
  readonly commands: Record<CommandName, CommandCounter>;
  /** By the number of the command. */
  readonly byType: CommandCounter[] = [];
  /** Requests of a type that is not known. */
  readonly unknown: CommandCounter = { requests: 0, bytes: 0, errors: 0 };
  /** Connections accepted. */
  connections = 0;
  /** Connections closed because there were too many. */
  connectionsRefused = 0;
  /** Connections that ended by the client's or the network's fault: garbage, too slow a handshake, a stall. */
  connectionsDropped = 0;
  /** Requests that wait for the device at this moment. */
  requestsInFlight = 0;

  constructor() {
    const entries = Object.entries(Command).map(([name, type]) => {
      const counter: CommandCounter = { requests: 0, bytes: 0, errors: 0 };
      this.byType[type] = counter;
      return [name, counter];
    });
    this.commands = Object.fromEntries(entries);
  }
}
