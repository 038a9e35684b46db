/** The bounds of a server. Every one holds whatever clients do. */
export interface ServerLimits {
  /** Clients at the same time. One more is closed at once, or takes the place of one that lingers in its handshake. */
  connections: number;
  /** Requests of one connection that wait for the device; further ones are not read from the socket. */
  requestsInFlight: number;
  /** Bytes of requests and replies that each connection may hold whatever others do. */
  bytesReserved: number;
  /** Bytes that one connection may hold, but for a single request that is larger. */
  bytesPerConnection: number;
  /** Bytes beyond what is reserved that all may hold together. */
  bytesShared: number;
  /** Bytes of replies that a client has not taken, beyond which no request of it is looked at. */
  bytesQueued: number;
  /** From the first byte to the transmission phase, milliseconds. */
  handshakeMs: number;
  /** How long a client that others wait for may neither send nor take anything, milliseconds. */
  stallMs: number;
  /** From the end of our side of the stream to the end of the client's, milliseconds. */
  closeMs: number;
}

/** What is right for most. */
export const DEFAULT_LIMITS: ServerLimits = {
  connections: 64,
  requestsInFlight: 256,
  bytesReserved: 512 * 1024,
  bytesPerConnection: 16 * 1024 * 1024,
  bytesShared: 32 * 1024 * 1024,
  bytesQueued: 1024 * 1024,
  handshakeMs: 15_000,
  stallMs: 15_000,
  closeMs: 5_000,
};
