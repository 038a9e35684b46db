import type { Descriptor } from "../../src/metadata/descriptor.ts";

/** The descriptor of a clone of so many bytes with nothing special about it, but for `changes`. */
export function plainDescriptor(size: number, changes: Partial<Descriptor> = {}): Descriptor {
  return {
    uuid: "u",
    created: "2026-01-02T03:04:05Z",
    source: { uri: "file:///a", size, format: "raw", fingerprint: {} },
    destination: { uri: "file:///b", size, fingerprint: {} },
    exactSize: size,
    options: {},
    unreadable: { ranges: [], inexact: false },
    served: false,
    finalized: null,
    ...changes,
  };
}
