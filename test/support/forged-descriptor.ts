/** Descriptors as a forger would leave them: whole and with a right checksum, but saying what the forger wants. */
import { FileDevice } from "../../src/device/file-device.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { type Descriptor, DescriptorStore } from "../../src/metadata/descriptor.ts";

/** Changes what the descriptor of metadata says. */
export async function forgeDescriptor(path: string, change: (descriptor: Descriptor) => Descriptor): Promise<void> {
  await using device = await FileDevice.open(path, { access: "read-write", direct: "off" });
  await using metadata = await CloneMetadata.open(device, { readOnly: true });
  const store = await DescriptorStore.open(device, { geometry: metadata.geometry, blockCount: metadata.totalBlocks });
  await store.write(change(store.read() as Descriptor));
}
