/**
 * What of a URL may be shown, logged and kept. A URL may itself be the key: `user:password@`, or a signature or token in
 * its query, as presigned URLs of every object store have.
 */

/** A URL as far as it may be seen by others. */
export interface SafeUrl {
  /** For messages and metadata: no userinfo, no fragment, and `?…` for a query that may hold a secret. */
  readonly text: string;
  /** Whether nothing was taken out that a server is sent, so that `text` opens the same thing again. */
  readonly isComplete: boolean;
  /** Whether there was a user or password before the host. */
  readonly hasUserinfo: boolean;
}

/** Names of parameters, in lower case and without `-`, `_` and `.`, that are secrets or come with them. */
const SECRET_NAMES =
  /^(xamz.*|xgoog.*|xoss.*|xcos.*|sig|sign|signature|hmac|hash|digest|mac|policy|keypairid|awsaccesskeyid|googleaccessid|ossaccesskeyid|accesskey|accesskeyid|key|apikey|subscriptionkey|code|auth|authorization|authkey|jwt|bearer|sas|skoid|sktid|pass|passwd|password|passphrase|passcode|pwd|pin|secret|clientsecret|credentials?|login|user|username|session|sessionid|sid|hdnea|hdnts|hdntl|verify|ticket|nonce|otp|wstoken|.*token.*|.*secret.*|.*password.*|.*signature.*|.*apikey.*|.*credential.*)$/;

/** A value that no person has chosen: 24 characters or more of one word that mixes letters and digits. */
const OPAQUE_VALUE = /^(?=.*\d)(?=.*[A-Za-z])[\w~+/=-]{24,}$/;

/** A JSON Web Token. */
const WEB_TOKEN = /^eyJ[\w-]*\./;

/** What may be shown of a URL, and of a text that is none. Never throws. */
export function safeUrl(url: string): SafeUrl {
  if (!URL.canParse(url)) return safeText(url);
  const parsed = new URL(url);
  const hasUserinfo = parsed.username !== "" || parsed.password !== "";
  const secret = parsed.search !== "" && queryMayHoldSecret(parsed.searchParams);
  parsed.username = "";
  parsed.password = "";
  parsed.hash = "";
  if (secret) parsed.search = "";
  const text = secret ? `${parsed.href.replace(/\?$/, "")}?…` : parsed.href;
  return { text, isComplete: !secret && !hasUserinfo, hasUserinfo };
}

function queryMayHoldSecret(query: URLSearchParams): boolean {
  for (const [name, value] of query) {
    if (SECRET_NAMES.test(name.toLowerCase().replaceAll(/[-_.]/g, ""))) return true;
    if (looksOpaque(value) || (value === "" && looksOpaque(name))) return true; // `?TOKEN`, too
  }
  return false;
}

function looksOpaque(value: string): boolean {
  return OPAQUE_VALUE.test(value) || WEB_TOKEN.test(value);
}

/** Of what is no URL, anything that stands where a secret would stand is taken out. */
function safeText(text: string): SafeUrl {
  const withoutQuery = text.replace(/[?#].*$/s, "?…");
  const shown = withoutQuery.replace(/^([^/]*:)?(\/\/)?.*@/s, "$1$2");
  return { text: shown, isComplete: shown === text, hasUserinfo: shown !== withoutQuery };
}
