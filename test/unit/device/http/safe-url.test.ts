import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { safeUrl } from "../../../../src/device/http/safe-url.ts";

describe("safeUrl()", () => {
  test.each([
    "https://images.example/debian-12.qcow2",
    "http://127.0.0.1:8080/a%20b/disk.img",
    "https://images.example/get?file=debian-12-generic-amd64.img&arch=amd64",
    "https://[::1]:8443/disk.img?version=3",
    "https://images.example/get?path=/pool/2024/long-directory/disk-of-the-database.img",
  ])("%s is shown as it is", (url) => {
    expect(safeUrl(url)).toEqual({ text: url, isComplete: true, hasUserinfo: false });
  });

  test.each([
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA&X-Amz-Signature=SECRET",
    "X-Goog-Signature=SECRET",
    "sv=2022-11-02&se=2030-01-01&sr=b&sp=r&sig=SECRET%3D",
    "Expires=1&Signature=SECRET&Key-Pair-Id=K",
    "token=SECRET",
    "access_token=SECRET",
    "ACCESS-TOKEN=SECRET",
    "private_token=SECRET",
    "api_key=SECRET",
    "password=SECRET",
    "a=b&t%6Fken=SECRET",
    "download=1&x=eyJSECRET.b.c",
    "x=0123456789abcdefSECRET0123456789",
    "0123456789abcdefSECRET0123456789",
  ])("a query ?%s is not shown", (query) => {
    const safe = safeUrl(`https://images.example/disk.img?${query}`);
    expect(safe).toEqual({ text: "https://images.example/disk.img?…", isComplete: false, hasUserinfo: false });
  });

  test("user and password are not shown, and told of", () => {
    expect(safeUrl("https://user:SECRET@images.example/disk.img")).toEqual({
      text: "https://images.example/disk.img",
      isComplete: false,
      hasUserinfo: true,
    });
    expect(safeUrl("https://SECRET@images.example/")).toMatchObject({ hasUserinfo: true, isComplete: false });
  });

  test("a fragment, which no server is sent, is left out and not missed", () => {
    expect(safeUrl("https://images.example/disk.img#SECRET")).toEqual({
      text: "https://images.example/disk.img",
      isComplete: true,
      hasUserinfo: false,
    });
  });

  test.each([
    "http://user:SECRET@host:99999/x",
    "http://user:SE/CRET@@[::1/x?a",
    "//u:SECRET@/x?SECRET",
    "http:u:SECRET@",
  ])("of %s, which is no URL, no secret is shown", (text) => {
    expect(safeUrl(text).text).not.toContain("SECRET");
  });

  test("a secret is never shown, whatever stands around it", () => {
    const word = fc.stringMatching(/^[a-z0-9.%:@/?&=-]{0,12}$/);
    const user = fc.stringMatching(/^[a-z0-9.%:@&=-]{0,12}$/); // a slash would end the host, and begin a path
    fc.assert(
      fc.property(user, word, fc.constantFrom("token", "sig", "X-Amz-Signature", "key"), (before, after, name) => {
        const shown = [
          safeUrl(`https://${before}:SECRET@host/${after}`).text,
          safeUrl(`https://host/${before}?a=${after.replaceAll("&", "")}&${name}=SECRET&b=${after}`).text,
        ];
        for (const text of shown) expect(text).not.toContain("SECRET");
      }),
    );
  });
});
