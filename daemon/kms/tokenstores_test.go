package kms

import (
	"os"
	"strings"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

const testCluster = "cluster-aaaaaaaaaaa"

// withToken returns a harness whose configured cluster is a SoftHSM2 token, and the
// token's PIN.
func withToken(t *testing.T, change func(*Cluster)) (*harness, string) {
	t.Helper()
	token := hsmtest.SoftHSM(t)
	token.Child = hsmtest.Child
	pin, err := os.ReadFile(token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	token.PINFile = ""
	c := Cluster{Token: token}
	if change != nil {
		change(&c)
	}
	h := newHarnessConfig(t, func(conf *Config) { conf.KeyStores.Clusters = map[string]Cluster{testCluster: c} })
	return h, strings.TrimSpace(string(pin))
}

func cloudStore(name, pin string) args {
	return args{"CustomKeyStoreName": name, "CloudHsmClusterId": testCluster, "KeyStorePassword": pin, "TrustAnchorCertificate": "an anchor"}
}

func TestTokenKeyStoreLife(t *testing.T) {
	h, pin := withToken(t, nil)
	id := h.connectedStore(cloudStore("token", pin))
	e := h.settled(id)
	if e["CustomKeyStoreType"] != typeCloudHSM || e["CloudHsmClusterId"] != testCluster || e["TrustAnchorCertificate"] != "an anchor" || e["XksProxyConfiguration"] != nil {
		t.Errorf("%v", e)
	}
	m := h.must("CreateKey", args{"Origin": typeCloudHSM, "CustomKeyStoreId": id}).fields["KeyMetadata"].(map[string]any)
	key, arn := m["KeyId"].(string), m["Arn"].(string)
	if m["CloudHsmClusterId"] != testCluster || m["CustomKeyStoreId"] != id || m["Origin"] != typeCloudHSM || m["CurrentKeyMaterialId"] != nil {
		t.Errorf("%v", m)
	}
	context := args{"a": "b"}
	sealed := h.must("Encrypt", args{"KeyId": key, "Plaintext": "c2VjcmV0", "EncryptionContext": context})
	blob := sealed.str("CiphertextBlob")
	if sealed.fields["KeyMaterialId"] != nil {
		t.Errorf("%v", sealed.fields)
	}
	if got := h.must("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": context}); got.str("Plaintext") != "c2VjcmV0" || got.fields["KeyMaterialId"] != nil {
		t.Errorf("%v", got.fields)
	}
	h.refused("Decrypt", args{"CiphertextBlob": blob}, "InvalidCiphertextException", "")
	dk := h.must("GenerateDataKey", args{"KeyId": key, "KeySpec": "AES_256"})
	if got := h.must("Decrypt", args{"CiphertextBlob": dk.str("CiphertextBlob"), "KeyId": arn}); got.str("Plaintext") != dk.str("Plaintext") {
		t.Error("a data key does not come back")
	}
	batch := h.must("GenerateDataKeys", args{"KeyId": key, "NumberOfKeys": 20, "KeySpec": "AES_256"})
	if batch.status != 200 {
		t.Errorf("%v", batch)
	}
	if got := h.must("GenerateRandom", args{"CustomKeyStoreId": id, "NumberOfBytes": 24}).str("Plaintext"); len(got) != 32 || strings.HasPrefix(got, "AAAAAAAA") {
		t.Errorf("random %q", got)
	}
	for _, in := range []args{
		{"KeyId": key, "RotationPeriodInDays": 365},
	} {
		if a := h.call("EnableKeyRotation", in); a.code() != "UnsupportedOperationException" {
			t.Errorf("EnableKeyRotation: %v", a)
		}
	}
	if a := h.call("RotateKeyOnDemand", args{"KeyId": key}); a.code() != "UnsupportedOperationException" {
		t.Errorf("RotateKeyOnDemand: %v", a)
	}
	if a := h.call("GetParametersForImport", args{"KeyId": key, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}); a.code() != "UnsupportedOperationException" {
		t.Errorf("GetParametersForImport: %v", a)
	}

	// Disabled, disconnected, back.
	h.must("DisableKey", args{"KeyId": key})
	h.refused("Encrypt", args{"KeyId": key, "Plaintext": "AAAA"}, "DisabledException", arn+" is disabled.")
	h.must("EnableKey", args{"KeyId": key})
	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	h.refused("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": context}, "KMSInvalidStateException", arn+" is unavailable.")
	h.refused("GenerateRandom", args{"CustomKeyStoreId": id, "NumberOfBytes": 24}, "CustomKeyStoreInvalidStateException", "The custom key store "+id+" is DISCONNECTED and its token cannot be used.")
	h.refused("UpdateCustomKeyStore", args{"CustomKeyStoreId": id, "CloudHsmClusterId": "cluster-bbbbbbbbbbb"}, "CloudHsmClusterNotFoundException",
		"The cluster cluster-bbbbbbbbbbb is not configured: the file of the option key-stores names the clusters and their tokens.")
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	h.settled(id)
	if got := h.must("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": context}).str("Plaintext"); got != "c2VjcmV0" {
		t.Errorf("after connecting again: %q", got)
	}

	// Deletion takes the object out of the token.
	rec, err := h.store.Key(h.ref(key))
	if err != nil {
		t.Fatal(err)
	}
	device := h.svc.stores.get(storeName{testAccount, testRegion, id}).device.Load().token
	object := hsm.TokenKeyID(rec.TokenKeyID)
	if err := device.Check(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	h.must("ScheduleKeyDeletion", args{"KeyId": key, "PendingWindowInDays": 7})
	h.now = h.now.Add(7*24*time.Hour + time.Second)
	h.due()
	if err := device.Check(t.Context(), object); err == nil {
		t.Error("the object of a deleted key is still in the token")
	}
	h.refused("DescribeKey", args{"KeyId": key}, "NotFoundException", "Key '"+arn+"' does not exist")
	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	h.must("DeleteCustomKeyStore", args{"CustomKeyStoreId": id})
}

// A token that vanishes takes its keys along and brings them back, though the module
// that saw it go does not find it again.
func TestTokenKeyStoreAway(t *testing.T) {
	h, pin := withToken(t, nil)
	id := h.connectedStore(cloudStore("token", pin))
	key, _ := h.newKey(args{"Origin": typeCloudHSM, "CustomKeyStoreId": id})
	blob := h.must("Encrypt", args{"KeyId": key, "Plaintext": "AAAA"}).str("CiphertextBlob")
	back := hsmtest.TakeTokens(t)
	h.refused("CreateKey", args{"Origin": typeCloudHSM, "CustomKeyStoreId": id}, "CustomKeyStoreInvalidStateException",
		"The token of the custom key store "+id+" could not make a key: it cannot be found at the moment.")
	if a := h.call("Decrypt", args{"CiphertextBlob": blob}); a.code() != "KMSInvalidStateException" {
		t.Errorf("Decrypt: %s", a)
	}
	if e := h.settled(id); e["ConnectionState"] != storeConnected {
		t.Errorf("%v", e)
	}
	back()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		a := h.call("Decrypt", args{"CiphertextBlob": blob})
		if a.str("Plaintext") == "AAAA" {
			break
		}
		if a.code() != "KMSInvalidStateException" || time.Now().After(deadline) {
			t.Fatalf("Decrypt: %s", a)
		}
	}
}

func TestTokenKeyStoreRefusals(t *testing.T) {
	h, pin := withToken(t, func(c *Cluster) { c.TrustAnchor = testAnchor })
	in := cloudStore("token", pin)
	h.refused("CreateCustomKeyStore", in, "IncorrectTrustAnchorException", "The trust anchor certificate in the request is not that of the cluster "+testCluster+".")
	in["TrustAnchorCertificate"] = "comment\n" + testAnchor
	in["CloudHsmClusterId"] = "cluster-bbbbbbbbbbb"
	h.refused("CreateCustomKeyStore", in, "CloudHsmClusterNotFoundException",
		"The cluster cluster-bbbbbbbbbbb is not configured: the file of the option key-stores names the clusters and their tokens.")
	in["CloudHsmClusterId"] = testCluster
	in["KeyStorePassword"] = "not-the-pin"
	id := h.must("CreateCustomKeyStore", in).str("CustomKeyStoreId")
	other := cloudStore("other", pin)
	other["TrustAnchorCertificate"] = testAnchor
	h.refused("CreateCustomKeyStore", other, "CloudHsmClusterInUseException", "The cluster "+testCluster+" belongs to the custom key store "+id+".")
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	if e := h.settled(id); e["ConnectionState"] != storeFailed || e["ConnectionErrorCode"] != "INVALID_CREDENTIALS" {
		t.Errorf("%v", e)
	}
	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	h.must("UpdateCustomKeyStore", args{"CustomKeyStoreId": id, "KeyStorePassword": pin})
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	if e := h.settled(id); e["ConnectionState"] != storeConnected {
		t.Errorf("%v", e)
	}
	h.refused("UpdateCustomKeyStore", args{"CustomKeyStoreId": id, "KeyStorePassword": pin + "0"}, "CustomKeyStoreInvalidStateException",
		"KeyStorePassword can only be changed while the custom key store is DISCONNECTED; "+id+" is CONNECTED.")
	h.refused("CreateKey", args{"Origin": typeCloudHSM, "CustomKeyStoreId": id, "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}, "UnsupportedOperationException",
		"A KMS key in the custom key store "+id+" can only have KeySpec SYMMETRIC_DEFAULT.")

	// A cluster that is not what it was, or is not there any more, shows in the state.
	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	clusters := h.svc.stores.config.Clusters
	fails := func(code string) {
		t.Helper()
		h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
		if e := h.settled(id); e["ConnectionState"] != storeFailed || e["ConnectionErrorCode"] != code {
			t.Errorf("%v", e)
		}
		h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	}
	c := clusters[testCluster]
	c.TrustAnchor = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	clusters[testCluster] = c
	fails("INTERNAL_ERROR")
	delete(clusters, testCluster)
	fails("CLUSTER_NOT_FOUND")
}

// Other keys than symmetric ones, where the operator allows them and the token has
// the mechanism.
func TestTokenKeyStoreOtherKeys(t *testing.T) {
	h, pin := withToken(t, func(c *Cluster) { c.OtherKeys = true })
	id := h.connectedStore(cloudStore("token", pin))
	for _, c := range []struct{ spec, usage, alg string }{
		{"ECC_NIST_P256", "SIGN_VERIFY", "ECDSA_SHA_256"},
		{"ECC_NIST_P521", "SIGN_VERIFY", "ECDSA_SHA_512"},
		{"RSA_2048", "SIGN_VERIFY", "RSASSA_PSS_SHA_256"},
		{"RSA_2048", "SIGN_VERIFY", "RSASSA_PKCS1_V1_5_SHA_512"},
	} {
		t.Run(c.spec+" "+c.alg, func(t *testing.T) {
			h := h.in(t)
			key, _ := h.newKey(args{"Origin": typeCloudHSM, "CustomKeyStoreId": id, "KeySpec": c.spec, "KeyUsage": c.usage})
			sig := h.must("Sign", args{"KeyId": key, "Message": "AAAA", "SigningAlgorithm": c.alg}).str("Signature")
			if got := h.must("Verify", args{"KeyId": key, "Message": "AAAA", "Signature": sig, "SigningAlgorithm": c.alg}); got.fields["SignatureValid"] != true {
				t.Errorf("%v", got.fields)
			}
			if a := h.call("Verify", args{"KeyId": key, "Message": "AAAB", "Signature": sig, "SigningAlgorithm": c.alg}); a.code() != "KMSInvalidSignatureException" {
				t.Errorf("another message: %v", a)
			}
			h.must("GetPublicKey", args{"KeyId": key})
		})
	}
	mac, _ := h.newKey(args{"Origin": typeCloudHSM, "CustomKeyStoreId": id, "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	tag := h.must("GenerateMac", args{"KeyId": mac, "Message": "AAAA", "MacAlgorithm": "HMAC_SHA_256"}).str("Mac")
	h.must("VerifyMac", args{"KeyId": mac, "Message": "AAAA", "Mac": tag, "MacAlgorithm": "HMAC_SHA_256"})
	if a := h.call("VerifyMac", args{"KeyId": mac, "Message": "AAAB", "Mac": tag, "MacAlgorithm": "HMAC_SHA_256"}); a.code() != "KMSInvalidMacException" {
		t.Errorf("another message: %v", a)
	}
	// AWS KMS's RSA keys decrypt with both forms of OAEP; SoftHSM2 has the one with SHA-1.
	h.refused("CreateKey", args{"Origin": typeCloudHSM, "CustomKeyStoreId": id, "KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}, "UnsupportedOperationException",
		"The token of the custom key store "+id+" has no mechanism for KeySpec RSA_2048 with KeyUsage ENCRYPT_DECRYPT.")
	h.refused("CreateKey", args{"Origin": typeCloudHSM, "CustomKeyStoreId": id, "KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"}, "UnsupportedOperationException",
		"The token of the custom key store "+id+" has no mechanism for KeySpec ML_DSA_44 with KeyUsage SIGN_VERIFY.")
}

const testAnchor = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
