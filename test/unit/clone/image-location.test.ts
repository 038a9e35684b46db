// Texts that qemu opens, and the credentials that they must not hold: the metadata, the status and the process list would.
import { describe, expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { parseJsonImage, refuseCredentials } from "../../../src/clone/image-location.ts";

function refusal(text: string): UsageError {
  try {
    refuseCredentials(text);
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    return error as UsageError;
  }
  return expect.fail(`${text} was let through`);
}

describe("refuseCredentials()", () => {
  test.each([
    ["rbd:pool/image:id=admin:key=S3cr3t==", "key"],
    ["rbd:pool/image:conf=/etc/ceph/x.conf:KEY=S3cr3t", "KEY"],
    ["rbd:pool/im\\:age:k\\ey=S3cr3t", "key"],
    ["rbd:pool/image: key =S3cr3t", "key"],
    ["ssh://user:S3cr3t@host/path", "a password"],
    ["ssh://user%3AS3cr3t@host/path", "a password"],
    ["ssh://user:S3c@r3t@host/path", "a password"],
    ["iscsi://user%S3cr3t@host/iqn.x/0", "a password"],
    ["nfs://host/path?password=S3cr3t", "password"],
    ["https://host/x?X-Amz-Signature=S3cr3t", "X-Amz-Signature"],
    ['json:{"driver":"ssh","password":"S3cr3t"}', "password"],
    ['json:{"driver":"raw","file":{"driver":"rbd","key":"S3cr3t"}}', "file.key"],
    ['json:{"driver":"raw","file.password":"S3cr3t"}', "file.password"],
    ['json:{"driver":"https","cookie":"S3cr3t","url":"https://h/"}', "cookie"],
    ['json:{"driver":"https","url":"https://u:S3cr3t@h/"}', "a password"],
    ['json:{"driver":"quorum","children":[{"driver":"ssh","path":"ssh://u:S3cr3t@h/x"}]}', "children.0.path"],
    ['json:{"driver":"raw","file":{"filename":"rbd:p/i:key=S3cr3t"}}', "file.filename"],
    ['json:{"driver":"raw","file":"json:{\\"driver\\":\\"ssh\\",\\"password\\":\\"S3cr3t\\"}"}', "password"],
  ])("refuses %s, and says what without the secret", (text, what) => {
    const { message, hint } = refusal(text);
    expect(message).toMatch(/^Cannot open ".*": it holds a credential/);
    expect(message).toContain(what);
    expect(`${message}${hint}`).not.toContain("S3c");
    expect(hint).toBeDefined();
  });

  test.each([
    "rbd:pool/image@snap:id=admin:conf=/etc/ceph/ceph.conf:keyring=/etc/ceph/keyring",
    "ssh://user@host:22/path?host_key_check=yes",
    "iscsi://user@host/iqn.2001-04.com.example:disk/0",
    "nfs://host/export/disk.img?uid=0",
    'json:{"driver":"raw","file":{"driver":"iscsi","password-secret":"sec0","user":"me","lun":0}}',
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"/images/key=1:x@y.qcow2"}}',
    "/images/a:b@c",
    "file:///a?b",
  ])("lets %s through", (text) => expect(refuseCredentials(text)).toBeUndefined());
});

describe("parseJsonImage()", () => {
  test("returns the object", () => {
    expect(parseJsonImage('json:{"driver":"raw","a":[1]}')).toEqual({ driver: "raw", a: [1] });
  });

  test.each([
    ["json:{'driver':'raw','password':'S3cr3t'}", "not JSON"],
    ["json:[]", "no object"],
    ["json:null", "no object"],
    ['json:{"file":"S3cr3t"}', "driver"],
    [`json:{"driver":"${"x".repeat(70_000)}"}`, "longer"],
  ])("refuses %.40s", (text, why) => {
    expect(() => parseJsonImage(text)).toThrow(UsageError);
    expect(() => parseJsonImage(text)).toThrow(why);
    expect(() => parseJsonImage(text)).not.toThrow("S3cr3t");
  });

  test("what is nested without end is refused, not recursed into until the stack ends", () => {
    const deep = `json:{"driver":"raw","a":${"[".repeat(20_000)}${"]".repeat(20_000)}}`;
    expect(() => refuseCredentials(deep)).toThrow("nested too deeply");
  });
});
