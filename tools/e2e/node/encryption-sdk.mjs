// The AWS Encryption SDK for JavaScript takes messages through a KMS keyring: it
// asks GenerateDataKey for the first key, Encrypt for every other, and Decrypt.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { buildClient, CommitmentPolicy, KMS, KmsKeyringNode } from "@aws-crypto/client-node";

const clientProvider = (region) => new KMS({ region, endpoint: process.env.KEYMILL_ENDPOINT });
const context = { purpose: "end to end", origin: "Bärlin" };
const client = clientProvider(process.env.AWS_REGION);
const newKey = async () => (await client.createKey({})).KeyMetadata;

for (const policy of [CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT, CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT]) {
  const { encrypt, decrypt } = buildClient(policy);
  for (const size of [0, 1, 100_000]) {
    test(`${size} bytes under ${policy}`, async () => {
      const [a, b] = [await newKey(), await newKey()];
      await client.createAlias({ AliasName: `alias/${policy}-${size}`, TargetKeyId: a.KeyId });
      const generatorKeyId = a.Arn.replace(`key/${a.KeyId}`, `alias/${policy}-${size}`);
      const keyring = new KmsKeyringNode({ clientProvider, generatorKeyId, keyIds: [b.Arn] });
      const message = randomBytes(size);
      const { result } = await encrypt(keyring, message, { encryptionContext: context });

      // Either key opens it.
      for (const keyIds of [[a.Arn], [b.Arn]]) {
        const opened = await decrypt(new KmsKeyringNode({ clientProvider, keyIds }), result);
        assert.ok(opened.plaintext.equals(message), "the message differs");
        for (const [name, value] of Object.entries(context)) assert.equal(opened.messageHeader.encryptionContext[name], value);
      }
      // A disabled key does not, and a message that was changed does not.
      await client.disableKey({ KeyId: a.KeyId });
      await assert.rejects(decrypt(new KmsKeyringNode({ clientProvider, keyIds: [a.Arn] }), result));
      const changed = Buffer.from(result);
      changed[changed.length - 1] ^= 1;
      await assert.rejects(decrypt(new KmsKeyringNode({ clientProvider, keyIds: [b.Arn] }), changed));
    });
  }
}
