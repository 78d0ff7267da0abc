package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

const anchorPEM = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"

// keyStoreDaemon starts a daemon with the file of custom key stores.
func keyStoreDaemon(t *testing.T, file string, o Options) *story {
	t.Helper()
	name := filepath.Join(t.TempDir(), "stores.yml")
	if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Args = append(o.Args, "--key-stores", name, "--quota-profile", "none")
	return storyIn(t, start(t, o), "us-east-1")
}

// behindVPC is a store whose proxy nobody asks before it is connected.
func behindVPC(n int) *kms.CreateCustomKeyStoreInput {
	return &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: ptr(fmt.Sprint("store ", n)), CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore,
		XksProxyConnectivity: types.XksProxyConnectivityTypeVpcEndpointService,
		XksProxyUriEndpoint:  ptr(fmt.Sprintf("https://p%d.example.com", n)), XksProxyUriPath: ptr("/kms/xks/v1"),
		XksProxyVpcEndpointServiceName: ptr(fmt.Sprintf("com.amazonaws.vpce.us-east-1.vpce-svc-%017x", n)), XksProxyVpcEndpointServiceOwner: ptr(Account),
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{AccessKeyId: ptr(xksID), RawSecretAccessKey: ptr(xksSecret)},
	}
}

func TestCustomKeyStoreRecords(t *testing.T) {
	const cluster, other = "cluster-aaaaaaaaaaa", "cluster-bbbbbbbbbbb"
	s := keyStoreDaemon(t, `clusters:
  `+cluster+`: {module: /nowhere/module.so, token: payments}
  `+other+`: {module: /nowhere/module.so, token: other}
xks:
  hosts: {p1.example.com: "127.0.0.1:9", p2.example.com: "127.0.0.1:9"}
`, Options{})
	ctx := s.ctx()
	create := func(in *kms.CreateCustomKeyStoreInput) error { _, err := s.CreateCustomKeyStore(ctx, in); return err }
	update := func(in *kms.UpdateCustomKeyStoreInput) error { _, err := s.UpdateCustomKeyStore(ctx, in); return err }

	proxied := must(s.CreateCustomKeyStore(ctx, behindVPC(1)))(t).CustomKeyStoreId
	second := must(s.CreateCustomKeyStore(ctx, behindVPC(2)))(t).CustomKeyStoreId
	in := &kms.CreateCustomKeyStoreInput{CustomKeyStoreName: ptr("cloud"), CloudHsmClusterId: ptr(cluster), KeyStorePassword: ptr("0123456"), TrustAnchorCertificate: ptr(anchorPEM)}
	cloud := must(s.CreateCustomKeyStore(ctx, in))(t).CustomKeyStoreId

	// Lists, pages, descriptions.
	seen := map[string]bool{}
	pages := kms.NewDescribeCustomKeyStoresPaginator(s.Client, &kms.DescribeCustomKeyStoresInput{Limit: ptr(int32(1))})
	for pages.HasMorePages() {
		for _, e := range must(pages.NextPage(ctx))(t).CustomKeyStores {
			seen[*e.CustomKeyStoreId] = true
		}
	}
	if len(seen) != 3 || !seen[*proxied] || !seen[*second] || !seen[*cloud] {
		t.Errorf("pages: %v", seen)
	}
	describe := func(name string) types.CustomKeyStoresListEntry {
		t.Helper()
		return must(s.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreName: &name}))(t).CustomKeyStores[0]
	}
	if e := describe("cloud"); *e.CloudHsmClusterId != cluster || *e.TrustAnchorCertificate != anchorPEM || e.CustomKeyStoreType != types.CustomKeyStoreTypeAwsCloudhsm || e.CreationDate == nil {
		t.Errorf("%+v", e)
	}
	if c := describe("store 1").XksProxyConfiguration; *c.VpcEndpointServiceName != *behindVPC(1).XksProxyVpcEndpointServiceName || *c.VpcEndpointServiceOwner != Account || *c.AccessKeyId != xksID {
		t.Errorf("%+v", c)
	}

	// What a second store may not share with a first.
	change := func(f func(*kms.CreateCustomKeyStoreInput)) error { in := behindVPC(9); f(in); return create(in) }
	wantError(t, change(func(in *kms.CreateCustomKeyStoreInput) { in.CustomKeyStoreName = ptr("store 1") }), "CustomKeyStoreNameInUseException", "...")
	wantError(t, change(func(in *kms.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = behindVPC(1).XksProxyUriEndpoint }), "XksProxyUriEndpointInUseException", "...")
	wantError(t, change(func(in *kms.CreateCustomKeyStoreInput) {
		in.XksProxyVpcEndpointServiceName = behindVPC(1).XksProxyVpcEndpointServiceName
	}), "XksProxyVpcEndpointServiceInUseException", "...")
	wantError(t, change(func(in *kms.CreateCustomKeyStoreInput) {
		in.XksProxyConnectivity, in.XksProxyVpcEndpointServiceName, in.XksProxyVpcEndpointServiceOwner = types.XksProxyConnectivityTypePublicEndpoint, nil, nil
		in.XksProxyUriEndpoint = ptr("https://nobody.invalid")
	}), "XksProxyUriUnreachableException", "...")
	again := *in
	again.CustomKeyStoreName = ptr("cloud 2")
	wantError(t, create(&again), "CloudHsmClusterInUseException", "...")
	again.CloudHsmClusterId = ptr("cluster-ccccccccccc")
	wantError(t, create(&again), "CloudHsmClusterNotFoundException", "...")

	// Updates.
	wantError(t, update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: second, NewCustomKeyStoreName: ptr("store 1")}), "CustomKeyStoreNameInUseException", "...")
	wantError(t, update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: second, XksProxyUriEndpoint: behindVPC(1).XksProxyUriEndpoint}), "XksProxyUriEndpointInUseException", "...")
	wantError(t, update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: second, XksProxyVpcEndpointServiceName: behindVPC(1).XksProxyVpcEndpointServiceName}), "XksProxyVpcEndpointServiceInUseException", "...")
	wantError(t, update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: cloud, CloudHsmClusterId: ptr("cluster-ccccccccccc")}), "CloudHsmClusterNotFoundException", "...")
	wantError(t, update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: second, XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint}), "XksProxyUriUnreachableException", "...")
	if err := update(&kms.UpdateCustomKeyStoreInput{
		CustomKeyStoreId: second, NewCustomKeyStoreName: ptr("renamed"), XksProxyConnectivity: types.XksProxyConnectivityTypeVpcEndpointService,
		XksProxyUriEndpoint: ptr("https://p3.example.com"), XksProxyUriPath: ptr("/three/kms/xks/v1"), XksProxyVpcEndpointServiceName: behindVPC(3).XksProxyVpcEndpointServiceName,
		XksProxyVpcEndpointServiceOwner: ptr("111122223333"), XksProxyAuthenticationCredential: behindVPC(3).XksProxyAuthenticationCredential,
	}); err != nil {
		t.Error(err)
	}
	if err := update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: cloud, KeyStorePassword: ptr("7654321"), CloudHsmClusterId: ptr(cluster)}); err != nil {
		t.Error(err)
	}

	// A proxy and a module that are not there.
	for id, want := range map[*string]types.ConnectionErrorCodeType{proxied: types.ConnectionErrorCodeTypeXksProxyNotReachable, cloud: ""} {
		must(s.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
		e := s.settledStore(id)
		if e.ConnectionState != types.ConnectionStateTypeFailed || e.ConnectionErrorCode == "" || want != "" && e.ConnectionErrorCode != want {
			t.Errorf("%s, %s", e.ConnectionState, e.ConnectionErrorCode)
		}
		_, err := s.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id})
		wantError(t, err, "CustomKeyStoreInvalidStateException", "...")
		_, err = s.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: id})
		wantError(t, err, "CustomKeyStoreInvalidStateException", "...")
		if id == cloud {
			wantError(t, update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: cloud, KeyStorePassword: ptr("9876543")}), "CustomKeyStoreInvalidStateException", "...")
		}
		must(s.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
		_, err = s.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
		wantError(t, err, "CustomKeyStoreInvalidStateException", "...")
	}
	_, err := s.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeAwsCloudhsm, CustomKeyStoreId: cloud})
	wantError(t, err, "CustomKeyStoreInvalidStateException", "...")
	_, err = s.GenerateRandom(ctx, &kms.GenerateRandomInput{CustomKeyStoreId: cloud, NumberOfBytes: ptr(int32(8))})
	wantError(t, err, "CustomKeyStoreInvalidStateException", "...")

	// Stores that do not exist.
	none := ptr("cks-1")
	for name, err := range map[string]error{
		"Connect":    errorOf(s.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: none})),
		"Disconnect": errorOf(s.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: none})),
		"Delete":     errorOf(s.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: none})),
		"Describe":   errorOf(s.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: none})),
		"Random":     errorOf(s.GenerateRandom(ctx, &kms.GenerateRandomInput{CustomKeyStoreId: none, NumberOfBytes: ptr(int32(8))})),
		"Update":     update(&kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: none, NewCustomKeyStoreName: ptr("x")}),
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, err, "CustomKeyStoreNotFoundException", "The custom key store cks-1 does not exist.")
		})
	}
	_, err = s.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{Marker: ptr("x")})
	wantError(t, err, "InvalidMarkerException", "...")

	must(s.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: second}))(t)
	if all := must(s.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{}))(t).CustomKeyStores; len(all) != 2 {
		t.Errorf("%d stores left", len(all))
	}
}

func errorOf[T any](_ T, err error) error { return err }

// settledStore waits until a store is no longer CONNECTING.
func (s *story) settledStore(id *string) types.CustomKeyStoresListEntry {
	s.Helper()
	for {
		e := must(s.DescribeCustomKeyStores(s.ctx(), &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: id}))(s).CustomKeyStores[0]
		if e.ConnectionState != types.ConnectionStateTypeConnecting {
			return e
		}
	}
}

// A key that never leaves a token, through the daemon, restarts of it, and the
// token's own process.
func TestTokenKeyStore(t *testing.T) {
	tok := token(t)
	const cluster = "cluster-aaaaaaaaaaa"
	pin := must(os.ReadFile(tok.PINFile))(t)
	s := keyStoreDaemon(t, "clusters:\n  "+cluster+": {module: "+tok.Module+", token: "+tok.Label+"}\n", Options{Env: []string{"SOFTHSM2_CONF=" + tok.conf}})
	ctx := s.ctx()
	id := must(s.CreateCustomKeyStore(ctx, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: ptr("token"), CloudHsmClusterId: ptr(cluster), KeyStorePassword: ptr(strings.TrimSpace(string(pin))), TrustAnchorCertificate: ptr(anchorPEM),
	}))(t).CustomKeyStoreId
	connect(t, s.Client, id)
	m := must(s.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeAwsCloudhsm, CustomKeyStoreId: id}))(t).KeyMetadata
	if *m.CloudHsmClusterId != cluster || *m.CustomKeyStoreId != *id || m.CurrentKeyMaterialId != nil {
		t.Errorf("%+v", m)
	}
	context := map[string]string{"a": "b"}
	data := must(s.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: m.KeyId, KeySpec: types.DataKeySpecAes256, EncryptionContext: context}))(t)
	opens := func(when string) {
		t.Helper()
		out, err := s.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: data.CiphertextBlob, EncryptionContext: context})
		if err != nil || !bytes.Equal(out.Plaintext, data.Plaintext) {
			t.Errorf("%s: %v", when, err)
		}
	}
	opens("at once")
	wantError(t, errorOf(s.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: data.CiphertextBlob})), "InvalidCiphertextException", "")
	if r := must(s.GenerateRandom(ctx, &kms.GenerateRandomInput{CustomKeyStoreId: id, NumberOfBytes: ptr(int32(32))}))(t).Plaintext; len(r) != 32 || bytes.Equal(r, make([]byte, 32)) {
		t.Errorf("random %x", r)
	}
	if got := *s.describe(*m.KeyId).CloudHsmClusterId; got != cluster {
		t.Errorf("cluster %s", got)
	}
	must(s.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
	wantError(t, errorOf(s.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: data.CiphertextBlob, EncryptionContext: context})), "KMSInvalidStateException", *m.Arn+" is unavailable.")
	connect(t, s.Client, id)
	opens("connected again")
	must(s.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: m.KeyId}))(t)
	must(s.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: m.KeyId}))(t)
	must(s.EnableKey(ctx, &kms.EnableKeyInput{KeyId: m.KeyId}))(t)
	opens("cancelled")
}
