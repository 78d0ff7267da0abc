package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

const (
	xksHost   = "xks.example.com"
	xksID     = "ABCDEFGHIJKLMNOPQRST"
	xksSecret = "0123456789012345678901234567890123456789abc"
)

// patient repeats a call that ran out of a proxy's 250 ms: the machine that runs
// the tests may be busy for longer.
func patient[T any](t *testing.T, call func() (T, error)) (T, error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		v, err := call()
		if err == nil || !strings.Contains(err.Error(), "time allotted") || time.Now().After(deadline) {
			return v, err
		}
	}
}

// TestServedXKSProxy: the external key store of one daemon is the proxy that
// another daemon serves, and what happens to the key there is felt here.
func TestServedXKSProxy(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca := newAuthority(t, "XKS")
	put("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	ca.issueHost(t, xksHost, file("cert.pem"), file("key.pem"))
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	addr := ln.Addr().String()
	ln.Close()

	stores := func(alias string) string {
		return `stores:
  - prefix: /e2e
    credentials: [{access-key-id: ` + xksID + `, secret-access-key: ` + xksSecret + `}]
    keys:
      - external-id: outer
        key: arn:aws:kms:us-east-1:` + Account + `:alias/` + alias + `
        accounts: ["` + Account + `"]
`
	}
	put("xks.yml", stores("outer"))
	put("stores.yml", "xks:\n  ca: ca.pem\n  hosts:\n    "+xksHost+": "+addr+"\n")

	outer := start(t, Options{Args: []string{"--xks-listen", addr, "--xks-credentials", file("xks.yml"), "--xks-tls-cert", file("cert.pem"), "--xks-tls-key", file("key.pem")}})
	inner := start(t, Options{Args: []string{"--key-stores", file("stores.yml")}})
	ctx := t.Context()
	there, here := must(outer.Client(ctx, "us-east-1"))(t), must(inner.Client(ctx, "us-east-1"))(t)
	key := must(there.CreateKey(ctx, &kms.CreateKeyInput{}))(t).KeyMetadata
	must(there.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/outer"), TargetKeyId: key.KeyId}))(t)

	in := &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: aws.String("outer"), CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore,
		XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint,
		XksProxyUriEndpoint:  aws.String("https://" + xksHost), XksProxyUriPath: aws.String("/e2e/kms/xks/v1"),
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{AccessKeyId: aws.String(xksID), RawSecretAccessKey: aws.String(strings.Repeat("x", 43))},
	}
	_, err := patient(t, func() (*kms.CreateCustomKeyStoreOutput, error) { return here.CreateCustomKeyStore(ctx, in) })
	var wrong *types.XksProxyIncorrectAuthenticationCredentialException
	if !errors.As(err, &wrong) {
		t.Errorf("a wrong secret: %v", err)
	}
	in.XksProxyAuthenticationCredential.RawSecretAccessKey = aws.String(xksSecret)
	store, err := patient(t, func() (*kms.CreateCustomKeyStoreOutput, error) { return here.CreateCustomKeyStore(ctx, in) })
	if err != nil {
		t.Fatal(err)
	}
	connect(t, here, store.CustomKeyStoreId)

	create := func(external string) (*kms.CreateKeyOutput, error) {
		return patient(t, func() (*kms.CreateKeyOutput, error) {
			return here.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternalKeyStore, CustomKeyStoreId: store.CustomKeyStoreId, XksKeyId: aws.String(external)})
		})
	}
	var missing *types.XksKeyNotFoundException
	if _, err := create("unknown"); !errors.As(err, &missing) {
		t.Errorf("an unknown external key: %v", err)
	}
	made, err := create("outer")
	if err != nil {
		t.Fatal(err)
	}
	id := made.KeyMetadata.KeyId
	if m := must(here.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: id}))(t).KeyMetadata; *m.CustomKeyStoreId != *store.CustomKeyStoreId || *m.XksKeyConfiguration.Id != "outer" {
		t.Errorf("%+v", m)
	}
	var inUse *types.XksKeyAlreadyInUseException
	if _, err := create("outer"); !errors.As(err, &inUse) {
		t.Errorf("the external key once more: %v", err)
	}

	context := map[string]string{"purpose": "test"}
	data, err := patient(t, func() (*kms.GenerateDataKeyOutput, error) {
		return here.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: id, KeySpec: types.DataKeySpecAes256, EncryptionContext: context})
	})
	if err != nil {
		t.Fatal(err)
	}
	if data.KeyMaterialId != nil {
		t.Error("a KeyMaterialId is shown")
	}
	decrypt := func(context map[string]string) (*kms.DecryptOutput, error) {
		return patient(t, func() (*kms.DecryptOutput, error) {
			return here.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: data.CiphertextBlob, EncryptionContext: context})
		})
	}
	if out, err := decrypt(context); err != nil || !bytes.Equal(out.Plaintext, data.Plaintext) {
		t.Fatalf("decryption: %v", err)
	}
	refused := func(when, text string, err error) {
		t.Helper()
		var state *types.KMSInvalidStateException
		if !errors.As(err, &state) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", when, err)
		}
	}
	_, err = decrypt(nil)
	refused("another context", "encryption context", err)
	must(there.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
	_, err = decrypt(context)
	refused("disabled there", "not enabled", err)
	must(there.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)

	// The key is taken off the list there, and put back.
	put("xks.yml", stores("other"))
	reload := func() {
		t.Helper()
		if err := outer.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	awaitThat := func(when string, ok func(error) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			_, err := decrypt(context)
			if ok(err) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", when, err)
			}
		}
	}
	reload()
	awaitThat("off the list", func(err error) bool {
		return err != nil && strings.Contains(err.Error(), "could not find the external key")
	})
	put("xks.yml", stores("outer"))
	reload()
	awaitThat("back on the list", func(err error) bool { return err == nil })
	if log := outer.Log(); !strings.Contains(log, "kms_operation=GenerateDataKey") || !strings.Contains(log, aws.ToString(made.KeyMetadata.Arn)) {
		t.Error("the proxy's log does not say for whom it worked")
	}
}

// connect connects a key store and waits for it.
func connect(t *testing.T, c *kms.Client, id *string) {
	t.Helper()
	ctx := t.Context()
	must(c.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(pollInterval) {
		s := must(c.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: id}))(t).CustomKeyStores[0]
		switch {
		case s.ConnectionState == types.ConnectionStateTypeConnected:
			return
		case s.ConnectionErrorCode == types.ConnectionErrorCodeTypeXksProxyTimedOut: // a busy machine
			must(c.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
			must(c.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
		case s.ConnectionState == types.ConnectionStateTypeFailed || time.Now().After(deadline):
			t.Fatalf("%s, %s", s.ConnectionState, s.ConnectionErrorCode)
		}
	}
}

// issueHost writes a certificate for a host name.
func (a *authority) issueHost(t *testing.T, host, certFile, keyFile string) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))(t)
	write(t, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, certFile, keyFile)
}
