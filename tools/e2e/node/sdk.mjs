// The AWS SDK for JavaScript v3 against a Keymill daemon: every operation that
// Keymill has, as an application would call it. KEYMILL_ENDPOINT says where the
// daemon is; the credentials come from the environment, as for any AWS client.
import assert from "node:assert/strict";
import { createHash, createPublicKey, diffieHellman, generateKeyPairSync, publicEncrypt, constants, verify } from "node:crypto";
import { test } from "node:test";
import * as kms from "@aws-sdk/client-kms";

const client = new kms.KMSClient({ endpoint: process.env.KEYMILL_ENDPOINT, maxAttempts: 1 });
const call = (name, input = {}) => client.send(new kms[name + "Command"](input));
const bytes = (text) => new TextEncoder().encode(text);
const same = (a, b) => assert.ok(Buffer.from(a).equals(Buffer.from(b)), "the bytes differ");
const newKey = async (input = {}) => (await call("CreateKey", input)).KeyMetadata;
const refused = (name, message) => (error) => {
  assert.equal(error.name, name);
  if (message !== undefined) assert.equal(error.message, message);
  assert.ok(error instanceof kms.KMSServiceException);
  return true;
};
const spki = (der) => createPublicKey({ key: Buffer.from(der), format: "der", type: "spki" });

test("keys", async () => {
  const before = Date.now();
  const key = await newKey({ Description: "made by JavaScript ✓", Tags: [{ TagKey: "a", TagValue: "1" }] });
  assert.equal(key.Description, "made by JavaScript ✓");
  assert.ok(Math.abs(key.CreationDate.getTime() - before) < 60_000);
  assert.deepEqual((await call("DescribeKey", { KeyId: key.Arn })).KeyMetadata, key);

  await call("UpdateKeyDescription", { KeyId: key.KeyId, Description: "" });
  await call("DisableKey", { KeyId: key.KeyId });
  await assert.rejects(call("Encrypt", { KeyId: key.KeyId, Plaintext: bytes("x") }), refused("DisabledException", `${key.Arn} is disabled.`));
  await call("EnableKey", { KeyId: key.KeyId });
  const going = await call("ScheduleKeyDeletion", { KeyId: key.KeyId, PendingWindowInDays: 7 });
  assert.equal(going.KeyState, "PendingDeletion");
  assert.equal((await call("CancelKeyDeletion", { KeyId: key.KeyId })).KeyId, key.Arn);
  const now = (await call("DescribeKey", { KeyId: key.KeyId })).KeyMetadata;
  assert.equal(now.KeyState, "Disabled");
  assert.equal(now.Description, "");

  await call("TagResource", { KeyId: key.KeyId, Tags: [{ TagKey: "b", TagValue: "" }] });
  await call("UntagResource", { KeyId: key.KeyId, TagKeys: ["a"] });
  assert.deepEqual((await call("ListResourceTags", { KeyId: key.KeyId })).Tags, [{ TagKey: "b", TagValue: "" }]);

  const policy = (await call("GetKeyPolicy", { KeyId: key.KeyId, PolicyName: "default" })).Policy;
  await call("PutKeyPolicy", { KeyId: key.KeyId, PolicyName: "default", Policy: policy });
  assert.deepEqual((await call("ListKeyPolicies", { KeyId: key.KeyId })).PolicyNames, ["default"]);

  const listed = [];
  for await (const page of kms.paginateListKeys({ client, pageSize: 1 }, {})) listed.push(...page.Keys.map((k) => k.KeyId));
  assert.ok(listed.includes(key.KeyId));
  await assert.rejects(call("DescribeKey", { KeyId: "nothing" }), refused("NotFoundException", "Invalid keyId 'nothing'"));
});

test("aliases", async () => {
  const [a, b] = [await newKey(), await newKey()];
  for (let i = 0; i < 5; i++) await call("CreateAlias", { AliasName: `alias/js/${i}`, TargetKeyId: a.KeyId });
  await call("UpdateAlias", { AliasName: "alias/js/0", TargetKeyId: b.Arn });
  await call("DeleteAlias", { AliasName: "alias/js/1" });
  const found = {};
  for await (const page of kms.paginateListAliases({ client, pageSize: 2 }, {})) {
    for (const alias of page.Aliases) if (alias.TargetKeyId) found[alias.AliasName] = alias.TargetKeyId;
  }
  assert.deepEqual(found, { "alias/js/0": b.KeyId, "alias/js/2": a.KeyId, "alias/js/3": a.KeyId, "alias/js/4": a.KeyId });
  assert.equal((await call("DescribeKey", { KeyId: "alias/js/0" })).KeyMetadata.KeyId, b.KeyId);
});

test("encryption", async () => {
  const [a, b] = [await newKey(), await newKey()];
  const EncryptionContext = { Bär: "ü", x: "" };
  const sealed = await call("Encrypt", { KeyId: a.KeyId, Plaintext: bytes("text"), EncryptionContext });
  same((await call("Decrypt", { CiphertextBlob: sealed.CiphertextBlob, EncryptionContext })).Plaintext, bytes("text"));
  await assert.rejects(call("Decrypt", { CiphertextBlob: sealed.CiphertextBlob }), refused("InvalidCiphertextException"));
  const moved = await call("ReEncrypt", { CiphertextBlob: sealed.CiphertextBlob, SourceEncryptionContext: EncryptionContext, DestinationKeyId: b.Arn });
  same((await call("Decrypt", { CiphertextBlob: moved.CiphertextBlob, KeyId: b.KeyId })).Plaintext, bytes("text"));
  await assert.rejects(
    call("Encrypt", { KeyId: a.KeyId, Plaintext: bytes("x"), DryRun: true }),
    refused("DryRunOperationException", "The request would have succeeded, but the DryRun option is set."),
  );

  const rsa = await newKey({ KeySpec: "RSA_2048", KeyUsage: "ENCRYPT_DECRYPT" });
  const key = spki((await call("GetPublicKey", { KeyId: rsa.KeyId })).PublicKey);
  for (const [EncryptionAlgorithm, oaepHash] of [["RSAES_OAEP_SHA_1", "sha1"], ["RSAES_OAEP_SHA_256", "sha256"]]) {
    const CiphertextBlob = publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash }, bytes("outside"));
    same((await call("Decrypt", { KeyId: rsa.KeyId, CiphertextBlob, EncryptionAlgorithm })).Plaintext, bytes("outside"));
  }
});

test("data keys and random bytes", async () => {
  const { KeyId } = await newKey();
  const dk = await call("GenerateDataKey", { KeyId, KeySpec: "AES_256" });
  assert.equal(dk.Plaintext.length, 32);
  same((await call("Decrypt", { CiphertextBlob: dk.CiphertextBlob })).Plaintext, dk.Plaintext);
  const blind = await call("GenerateDataKeyWithoutPlaintext", { KeyId, NumberOfBytes: 64 });
  assert.equal((await call("Decrypt", { CiphertextBlob: blind.CiphertextBlob })).Plaintext.length, 64);
  const pair = await call("GenerateDataKeyPair", { KeyId, KeyPairSpec: "ECC_NIST_P384" });
  assert.equal(spki(pair.PublicKey).asymmetricKeyDetails.namedCurve, "secp384r1");
  const other = await call("GenerateDataKeyPairWithoutPlaintext", { KeyId, KeyPairSpec: "RSA_2048" });
  assert.equal(spki(other.PublicKey).asymmetricKeyDetails.modulusLength, 2048);
  assert.equal((await call("GenerateRandom", { NumberOfBytes: 1024 })).Plaintext.length, 1024);
});

// What node's OpenSSL verifies from the public key alone.
const signatures = [
  ["RSA_2048", "RSASSA_PSS_SHA_256", "sha256", { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }],
  ["RSA_2048", "RSASSA_PKCS1_V1_5_SHA_512", "sha512", {}],
  ["ECC_NIST_P256", "ECDSA_SHA_256", "sha256", {}],
  ["ECC_NIST_P384", "ECDSA_SHA_384", "sha384", {}],
  ["ECC_NIST_P521", "ECDSA_SHA_512", "sha512", {}],
  ["ECC_SECG_P256K1", "ECDSA_SHA_256", "sha256", {}],
  ["ECC_NIST_EDWARDS25519", "ED25519_SHA_512", null, {}],
];
for (const [KeySpec, SigningAlgorithm, hash, how] of signatures) {
  test(`${SigningAlgorithm} with ${KeySpec}`, async () => {
    const { KeyId } = await newKey({ KeySpec, KeyUsage: "SIGN_VERIFY" });
    const Message = bytes("sign me");
    const { Signature } = await call("Sign", { KeyId, Message, SigningAlgorithm });
    const key = spki((await call("GetPublicKey", { KeyId })).PublicKey);
    assert.ok(verify(hash, Message, { key, ...how }, Signature), "verified outside");
    assert.equal((await call("Verify", { KeyId, Message, Signature, SigningAlgorithm })).SignatureValid, true);
    if (hash) {
      const digest = createHash(hash).update(Message).digest();
      const out = await call("Sign", { KeyId, Message: digest, MessageType: "DIGEST", SigningAlgorithm });
      assert.ok(verify(hash, Message, { key, ...how }, out.Signature), "signed as a digest, verified outside");
    }
    await assert.rejects(call("Verify", { KeyId, Message: bytes("another"), Signature, SigningAlgorithm }), refused("KMSInvalidSignatureException"));
  });
}

test("codes", async () => {
  const { KeyId } = await newKey({ KeySpec: "HMAC_384", KeyUsage: "GENERATE_VERIFY_MAC" });
  const input = { KeyId, Message: bytes("m"), MacAlgorithm: "HMAC_SHA_384" };
  const { Mac } = await call("GenerateMac", input);
  assert.equal(Mac.length, 48);
  assert.equal((await call("VerifyMac", { ...input, Mac })).MacValid, true);
  await assert.rejects(call("VerifyMac", { ...input, Mac: bytes("m") }), refused("KMSInvalidMacException"));
});

test("shared secrets", async () => {
  const { KeyId } = await newKey({ KeySpec: "ECC_NIST_P521", KeyUsage: "KEY_AGREEMENT" });
  const publicKey = spki((await call("GetPublicKey", { KeyId })).PublicKey);
  const ours = generateKeyPairSync("ec", { namedCurve: "secp521r1" });
  const PublicKey = ours.publicKey.export({ format: "der", type: "spki" });
  const { SharedSecret } = await call("DeriveSharedSecret", { KeyId, PublicKey, KeyAgreementAlgorithm: "ECDH" });
  same(SharedSecret, diffieHellman({ privateKey: ours.privateKey, publicKey }));
});
