/** Which metadata contexts an export has, and which of them a client's queries mean (NBD "Metadata querying"). */
import type { StatusContext } from "../device/served-device.ts";
import type { NbdExport } from "./export.ts";
import { BASE_ALLOCATION } from "./protocol.ts";

/** A context that a client selected. */
export interface SelectedContext {
  /** What the replies call it; unique on the connection. */
  id: number;
  name: string;
  /** Undefined for `base:allocation`, which the device's extents tell. */
  context: StatusContext | undefined;
}

/** All contexts of an export; their place in this list, from 1 on, is their id. */
function contextsOf(served: NbdExport): SelectedContext[] {
  const own = served.device.contexts.map((context, index) => ({ id: index + 2, name: context.name, context }));
  return [{ id: 1, name: BASE_ALLOCATION, context: undefined }, ...own];
}

/** Whether a query begins with a namespace, as each has to. */
export function isValidQuery(query: string): boolean {
  return query.indexOf(":") > 0;
}

/** What NBD_OPT_LIST_META_CONTEXT shows: without a query all; `base:` means every context of that namespace. */
export function listContexts(served: NbdExport, queries: readonly string[]): SelectedContext[] {
  const all = contextsOf(served);
  if (queries.length === 0) return all;
  return all.filter(({ name }) => queries.some((query) => query === name || query === name.replace(/:.*/, ":")));
}

/** What NBD_OPT_SET_META_CONTEXT selects: contexts named in full. A namespace alone selects nothing, as with others. */
export function selectContexts(served: NbdExport, queries: readonly string[]): SelectedContext[] {
  return contextsOf(served).filter(({ name }) => queries.includes(name));
}
