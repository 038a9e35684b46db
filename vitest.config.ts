import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/global-setup.ts"],
    // Tests start processes and make file systems, and the machine may be busy: these end a hang, they measure nothing.
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
