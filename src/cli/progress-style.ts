/** What --progress takes; apart from the progress itself because every --help needs it. */
export const PROGRESS_STYLES = ["auto", "bar", "plain", "json", "none"] as const;

/** One of them. */
export type ProgressStyle = (typeof PROGRESS_STYLES)[number];
