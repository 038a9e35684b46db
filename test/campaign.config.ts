/** For test/campaign.mjs: the same files once in every shard. */
import { defineConfig } from "vitest/config";

const { CAMPAIGN_NAME, CAMPAIGN_SHARDS, VITEST_JSON_REPORT: reportFile } = process.env;
if (CAMPAIGN_NAME === undefined) throw new Error("start campaigns with test/campaign.mjs");
const shards = Array.from({ length: Number(CAMPAIGN_SHARDS) }, (_, shard) => shard);

export default defineConfig({
  test: {
    globalSetup: ["test/support/global-setup.ts"],
    maxWorkers: "100%",
    // A shard whose share of a list is empty has no test of it; a campaign that looked at nothing prints no figures, and fails.
    passWithNoTests: true,
    reporters:
      reportFile === undefined || reportFile === "" ? ["default"] : ["default", ["json", { outputFile: reportFile }]],
    projects: shards.map((shard) => ({
      extends: true,
      test: {
        name: shards.length === 1 ? `${CAMPAIGN_NAME}` : `${CAMPAIGN_NAME} ${shard + 1}/${shards.length}`,
        include: [`test/${CAMPAIGN_NAME}/**/*.campaign.ts`],
        // Campaigns take the time they take; hangs are for them to notice.
        testTimeout: 0,
        hookTimeout: 0,
        env: { CAMPAIGN_SHARD: String(shard) },
      },
    })),
  },
});
