package kms

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"keymill/daemon/quota"
	"keymill/daemon/wire"
	"keymill/daemon/xks"
)

const (
	proxyHost   = "xks.example.com"
	proxyID     = "ABCDEFGHIJKLMNOPQRST"
	proxySecret = "0123456789012345678901234567890123456789abc"
	otherSecret = "abcdefghijabcdefghijabcdefghijabcdefghij012"
)

// A proxy is an XKS proxy of the harness's own keys, behind TLS.
type proxy struct {
	t      *testing.T
	server atomic.Pointer[xks.Server]
	file   string
	keys   map[string]string // external id -> key ARN
	http   *httptest.Server
	down   atomic.Bool // answers as a proxy that has lost its key manager
	hold   atomic.Pointer[heldCall]
}

// A heldCall is the next call, which waits until it is freed.
type heldCall struct{ came, free chan struct{} }

// newProxy starts a proxy and returns it with what reaches it.
func newProxy(t *testing.T) (*proxy, xks.TransportConfig) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: proxyHost}, DNSNames: []string{proxyHost},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, file: filepath.Join(t.TempDir(), "xks.yaml"), keys: make(map[string]string)}
	p.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if held := p.hold.Swap(nil); held != nil {
			close(held.came)
			<-held.free
		}
		switch {
		case p.down.Load():
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"errorName":"InternalException","errorMessage":"no key manager, says the proxy"}`)
		default:
			p.server.Load().ServeHTTP(w, r)
		}
	}))
	p.http.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	p.http.StartTLS()
	t.Cleanup(p.http.Close)
	return p, xks.TransportConfig{
		CAFiles: []string{ca},
		Hosts:   map[string]string{proxyHost: p.http.Listener.Addr().String()},
		Budget:  20 * time.Second, // the machine may be busy
	}
}

// serve puts keys and a secret into force.
func (p *proxy) serve(secret string, keys ...string) {
	p.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "stores:\n  - prefix: \"\"\n    credentials:\n      - access-key-id: %s\n        secret-access-key: %s\n    keys:\n", proxyID, secret)
	for i := 0; i < len(keys); i += 2 {
		fmt.Fprintf(&b, "      - external-id: %s\n        key: %s\n", keys[i], keys[i+1])
	}
	if err := os.WriteFile(p.file, []byte(b.String()), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := p.server.Load().Load(p.file); err != nil {
		p.t.Fatal(err)
	}
}

// stand puts a proxy of the service's keys into force.
func (p *proxy) stand(h *harness) *xks.Server {
	s := xks.NewServer(xks.ServerOptions{Keys: h.svc, Clock: func() time.Time { return h.now }, Logger: slog.New(slog.NewTextHandler(testLog{p.t}, nil))})
	p.server.Store(s)
	return s
}

// withProxy returns a harness whose external key stores reach the proxy, which
// serves two of the harness's keys, ext-1 and ext-2.
func withProxy(t *testing.T) (*harness, *proxy) {
	p, transport := newProxy(t)
	h := newHarnessConfig(t, func(c *Config) { c.KeyStores.Proxies = transport })
	p.stand(h)
	_, first := h.newKey(nil)
	_, second := h.newKey(nil)
	p.serve(proxySecret, "ext-1", first, "ext-2", second)
	return h, p
}

func externalStore(name, path string) args {
	return args{
		"CustomKeyStoreName": name, "CustomKeyStoreType": typeExternal, "XksProxyConnectivity": publicEndpoint,
		"XksProxyUriEndpoint": "https://" + proxyHost, "XksProxyUriPath": path,
		"XksProxyAuthenticationCredential": args{"AccessKeyId": proxyID, "RawSecretAccessKey": proxySecret},
	}
}

const proxyPath = "/kms/xks/v1"

// connected waits until a store has left CONNECTING, and returns its description.
func (h *harness) settled(id string) map[string]any {
	h.Helper()
	for {
		e := h.must("DescribeCustomKeyStores", args{"CustomKeyStoreId": id}).fields["CustomKeyStores"].([]any)[0].(map[string]any)
		if e["ConnectionState"] != storeConnecting {
			return e
		}
		time.Sleep(time.Millisecond)
	}
}

func (h *harness) connectedStore(in args) string {
	h.Helper()
	id := h.must("CreateCustomKeyStore", in).str("CustomKeyStoreId")
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	if e := h.settled(id); e["ConnectionState"] != storeConnected {
		h.Fatalf("%v", e)
	}
	return id
}

func TestExternalKeyStoreLife(t *testing.T) {
	h, p := withProxy(t)
	id := h.must("CreateCustomKeyStore", externalStore("proxy", proxyPath)).str("CustomKeyStoreId")
	if len(id) != 21 || !strings.HasPrefix(id, "cks-") {
		t.Errorf("id %q", id)
	}
	if again := h.must("CreateCustomKeyStore", externalStore("proxy", proxyPath)).str("CustomKeyStoreId"); again != id {
		t.Errorf("the same request made %s beside %s", again, id)
	}
	e := h.settled(id)
	config, _ := e["XksProxyConfiguration"].(map[string]any)
	if e["CustomKeyStoreName"] != "proxy" || e["CustomKeyStoreType"] != typeExternal || e["ConnectionState"] != storeDisconnected ||
		e["CreationDate"] == nil || e["ConnectionErrorCode"] != nil || config["AccessKeyId"] != proxyID || config["Connectivity"] != publicEndpoint ||
		config["UriEndpoint"] != "https://"+proxyHost || config["UriPath"] != proxyPath {
		t.Errorf("%v", e)
	}
	if text := fmt.Sprint(e); strings.Contains(text, proxySecret) {
		t.Error("a description holds the secret")
	}
	newKey := args{"Origin": typeExternal, "CustomKeyStoreId": id, "XksKeyId": "ext-1", "Tags": []args{{"TagKey": "a", "TagValue": "b"}}}
	h.refused("CreateKey", newKey, "CustomKeyStoreInvalidStateException", "The custom key store "+id+" is DISCONNECTED; connect it first.")
	if got := h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id}).body; got != "{}" {
		t.Errorf("ConnectCustomKeyStore answers %q", got)
	}
	h.settled(id)
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id}) // no effect

	m := h.must("CreateKey", newKey).fields["KeyMetadata"].(map[string]any)
	key, arn := m["KeyId"].(string), m["Arn"].(string)
	if x, _ := m["XksKeyConfiguration"].(map[string]any); x["Id"] != "ext-1" || m["CustomKeyStoreId"] != id || m["Origin"] != typeExternal ||
		m["KeyState"] != "Enabled" || m["CurrentKeyMaterialId"] != nil {
		t.Errorf("%v", m)
	}
	h.refused("CreateKey", newKey, "XksKeyAlreadyInUseException", "The external key ext-1 is used by another KMS key of the custom key store "+id+".")
	h.refused("CreateKey", args{"Origin": typeExternal, "CustomKeyStoreId": id, "XksKeyId": "ext-9"}, "XksKeyNotFoundException",
		"The external key store proxy could not find the external key. Check the ID of the external key and that it exists in the external key manager.")

	// Twice encrypted, and back, through every operation that such a key has.
	context := args{"a": "b"}
	sealed := h.must("Encrypt", args{"KeyId": key, "Plaintext": "c2VjcmV0", "EncryptionContext": context})
	if sealed.fields["KeyMaterialId"] != nil || sealed.str("KeyId") != arn {
		t.Errorf("Encrypt: %v", sealed.fields)
	}
	blob := sealed.str("CiphertextBlob")
	if got := h.must("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": context}); got.str("Plaintext") != "c2VjcmV0" || got.fields["KeyMaterialId"] != nil {
		t.Errorf("Decrypt: %v", got.fields)
	}
	h.refused("Decrypt", args{"CiphertextBlob": blob, "EncryptionContext": args{"a": "c"}}, "KMSInvalidStateException",
		"The external key store proxy rejected the request: the ciphertext or the encryption context is corrupted, missing, or otherwise invalid.")
	dk := h.must("GenerateDataKey", args{"KeyId": key, "KeySpec": "AES_256"})
	if got := h.must("Decrypt", args{"CiphertextBlob": dk.str("CiphertextBlob")}); got.str("Plaintext") != dk.str("Plaintext") {
		t.Error("a data key does not come back")
	}
	h.must("GenerateDataKeyWithoutPlaintext", args{"KeyId": key, "KeySpec": "AES_128"})
	local, _ := h.newKey(nil)
	moved := h.must("ReEncrypt", args{"CiphertextBlob": blob, "SourceEncryptionContext": context, "DestinationKeyId": local}).str("CiphertextBlob")
	back := h.must("ReEncrypt", args{"CiphertextBlob": moved, "DestinationKeyId": key}).str("CiphertextBlob")
	if got := h.must("Decrypt", args{"CiphertextBlob": back}).str("Plaintext"); got != "c2VjcmV0" {
		t.Errorf("after ReEncrypt: %q", got)
	}
	h.refused("GenerateDataKeyPair", args{"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}, "UnsupportedOperationException",
		arn+" is in a custom key store, whose keys do not encrypt data key pairs.")
	h.refused("GenerateRandom", args{"CustomKeyStoreId": id, "NumberOfBytes": 16}, "UnsupportedOperationException",
		"Random bytes cannot be had from the external key store "+id+".")

	// Whatever the proxy has, callers are told that the key cannot be used.
	p.down.Store(true)
	h.refused("Encrypt", args{"KeyId": key, "Plaintext": "c2VjcmV0"}, "KMSInvalidStateException",
		"The external key store proxy cannot reach the external key manager. If this happens again, report it to the administrator of the external key store proxy.")
	if e := h.settled(id); e["ConnectionState"] != storeConnected {
		t.Errorf("a failing proxy disconnected its store: %v", e)
	}
	p.down.Store(false)
	h.must("Encrypt", args{"KeyId": key, "Plaintext": "c2VjcmV0"})

	// A disabled key, and a disconnected store.
	h.must("DisableKey", args{"KeyId": key})
	h.refused("Encrypt", args{"KeyId": key, "Plaintext": "c2VjcmV0"}, "DisabledException", arn+" is disabled.")
	h.must("EnableKey", args{"KeyId": key})
	h.must("Encrypt", args{"KeyId": key, "Plaintext": "c2VjcmV0"})
	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	h.refused("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id}, "CustomKeyStoreInvalidStateException", "The custom key store "+id+" is DISCONNECTED already.")
	h.refused("Encrypt", args{"KeyId": key, "Plaintext": "c2VjcmV0"}, "KMSInvalidStateException", arn+" is unavailable.")
	h.refused("Decrypt", args{"CiphertextBlob": blob}, "KMSInvalidStateException", arn+" is unavailable.")
	state := func() any {
		return h.must("DescribeKey", args{"KeyId": key}).fields["KeyMetadata"].(map[string]any)["KeyState"]
	}
	if s := state(); s != "Unavailable" {
		t.Errorf("state %v", s)
	}
	h.must("DisableKey", args{"KeyId": key}) // shows when the store is back
	h.refused("DeleteCustomKeyStore", args{"CustomKeyStoreId": id}, "CustomKeyStoreHasCMKsException",
		"The custom key store "+id+" has KMS keys; schedule their deletion and wait until they are deleted.")
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	h.settled(id)
	if s := state(); s != "Disabled" {
		t.Errorf("state %v", s)
	}
	h.must("EnableKey", args{"KeyId": key})
	if got := h.must("Decrypt", args{"CiphertextBlob": back}).str("Plaintext"); got != "c2VjcmV0" {
		t.Errorf("after connecting again: %q", got)
	}

	h.must("ScheduleKeyDeletion", args{"KeyId": key, "PendingWindowInDays": 7})
	h.refused("DeleteCustomKeyStore", args{"CustomKeyStoreId": id}, "CustomKeyStoreInvalidStateException", "The custom key store "+id+" is CONNECTED; disconnect it first.")
}

func TestExternalKeyStoreRefusals(t *testing.T) {
	h, p := withProxy(t)
	change := func(change args) args {
		in := externalStore("a store", proxyPath)
		for k, v := range change {
			if v == nil {
				delete(in, k)
			} else {
				in[k] = v
			}
		}
		return in
	}
	wrong := args{"AccessKeyId": proxyID, "RawSecretAccessKey": otherSecret}
	for name, c := range map[string]struct {
		in         args
		code, text string
	}{
		"no credential":   {change(args{"XksProxyAuthenticationCredential": nil}), "ValidationException", "You must specify XksProxyAuthenticationCredential for a custom key store of type EXTERNAL_KEY_STORE."},
		"a cluster":       {change(args{"CloudHsmClusterId": "cluster-aaaaaaaaaaa"}), "ValidationException", "You cannot specify CloudHsmClusterId for a custom key store of type EXTERNAL_KEY_STORE."},
		"of neither type": {change(args{"CustomKeyStoreType": nil}), "ValidationException", "You must specify CloudHsmClusterId for a custom key store of type AWS_CLOUDHSM."},
		"no service":      {change(args{"XksProxyConnectivity": vpcEndpoint}), "ValidationException", "You must specify XksProxyVpcEndpointServiceName when XksProxyConnectivity is VPC_ENDPOINT_SERVICE."},
		"a service": {change(args{"XksProxyVpcEndpointServiceOwner": testAccount}), "ValidationException",
			"You cannot specify XksProxyVpcEndpointServiceName or XksProxyVpcEndpointServiceOwner when XksProxyConnectivity is PUBLIC_ENDPOINT."},
		"wrong credential": {change(args{"XksProxyAuthenticationCredential": wrong}), "XksProxyIncorrectAuthenticationCredentialException",
			"The external key store proxy could not authenticate the request. Check the proxy authentication credential of the external key store."},
		"wrong path": {change(args{"XksProxyUriPath": "/elsewhere/kms/xks/v1"}), "XksProxyInvalidConfigurationException",
			"The external key store proxy does not know the URI path of the request. Check the proxy URI path of the external key store."},
		"wrong host": {change(args{"XksProxyUriEndpoint": "https://nobody.invalid"}), "XksProxyUriUnreachableException",
			"The external key store proxy cannot be reached. If this happens again, check that it is running and that its endpoint and network are set up correctly."},
	} {
		t.Run(name, func(t *testing.T) {
			h.in(t).refused("CreateCustomKeyStore", c.in, c.code, c.text)
		})
	}
	p.down.Store(true)
	h.refused("CreateCustomKeyStore", externalStore("a store", proxyPath), "XksProxyInvalidResponseException",
		"The external key store proxy cannot reach the external key manager. If this happens again, report it to the administrator of the external key store proxy.")
	p.down.Store(false)

	id := h.connectedStore(externalStore("a store", proxyPath))
	h.refused("CreateCustomKeyStore", externalStore("a store", "/x/kms/xks/v1"), "CustomKeyStoreNameInUseException", "The custom key store "+id+" already has the name a store.")
	h.refused("CreateCustomKeyStore", externalStore("another", proxyPath), "XksProxyUriInUseException", "The proxy https://"+proxyHost+proxyPath+" belongs to the custom key store "+id+".")
	vpc := change(args{"XksProxyConnectivity": vpcEndpoint, "XksProxyVpcEndpointServiceName": "com.amazonaws.vpce.eu-west-1.vpce-svc-0123456789abcdef0", "CustomKeyStoreName": "vpc"})
	h.refused("CreateCustomKeyStore", vpc, "XksProxyUriEndpointInUseException", "The endpoint https://"+proxyHost+" belongs to the custom key store "+id+".")

	for name, c := range map[string]struct {
		in         args
		code, text string
	}{
		"no store":         {args{"Origin": typeExternal, "XksKeyId": "ext-1"}, "ValidationException", "You must specify CustomKeyStoreId for Origin EXTERNAL_KEY_STORE."},
		"no external key":  {args{"Origin": typeExternal, "CustomKeyStoreId": id}, "ValidationException", "You must specify XksKeyId for Origin EXTERNAL_KEY_STORE."},
		"no origin":        {args{"CustomKeyStoreId": id}, "ValidationException", "CustomKeyStoreId can only be used with Origin AWS_CLOUDHSM or EXTERNAL_KEY_STORE."},
		"external key":     {args{"XksKeyId": "ext-1"}, "ValidationException", "XksKeyId can only be used with Origin EXTERNAL_KEY_STORE."},
		"the other origin": {args{"Origin": typeCloudHSM, "CustomKeyStoreId": id}, "ValidationException", "The custom key store " + id + " is of type EXTERNAL_KEY_STORE, which does not fit Origin AWS_CLOUDHSM."},
		"unknown store":    {args{"Origin": typeExternal, "CustomKeyStoreId": "cks-1", "XksKeyId": "ext-1"}, "CustomKeyStoreNotFoundException", "The custom key store cks-1 does not exist."},
		"multi-Region":     {args{"Origin": typeExternal, "CustomKeyStoreId": id, "XksKeyId": "ext-1", "MultiRegion": true}, "UnsupportedOperationException", "A KMS key in a custom key store cannot be a multi-Region key."},
		"RSA": {args{"Origin": typeExternal, "CustomKeyStoreId": id, "XksKeyId": "ext-1", "KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}, "UnsupportedOperationException",
			"A KMS key in the custom key store " + id + " can only have KeySpec SYMMETRIC_DEFAULT."},
	} {
		t.Run("key/"+name, func(t *testing.T) {
			h.in(t).refused("CreateKey", c.in, c.code, c.text)
		})
	}

	for _, op := range []string{"ConnectCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore"} {
		h.refused(op, args{"CustomKeyStoreId": "cks-1"}, "CustomKeyStoreNotFoundException", "The custom key store cks-1 does not exist.")
	}
	h.refused("UpdateCustomKeyStore", args{"CustomKeyStoreId": "cks-1", "NewCustomKeyStoreName": "x"}, "CustomKeyStoreNotFoundException", "The custom key store cks-1 does not exist.")
	h.refused("DescribeCustomKeyStores", args{"CustomKeyStoreId": "cks-1"}, "CustomKeyStoreNotFoundException", "The custom key store cks-1 does not exist.")
	h.refused("DescribeCustomKeyStores", args{"CustomKeyStoreName": "nobody"}, "CustomKeyStoreNotFoundException", "The custom key store nobody does not exist.")
	h.refused("DescribeCustomKeyStores", args{"CustomKeyStoreId": id, "CustomKeyStoreName": "a store"}, "ValidationException", "You can specify CustomKeyStoreId or CustomKeyStoreName, not both.")
	h.refused("DescribeCustomKeyStores", args{"Marker": "x"}, "InvalidMarkerException", invalidMarker().(*wire.Error).Message)
}

func TestExternalKeyStoreUpdate(t *testing.T) {
	h, p := withProxy(t)
	id := h.connectedStore(externalStore("a store", proxyPath))
	key, _ := h.newKey(args{"Origin": typeExternal, "CustomKeyStoreId": id, "XksKeyId": "ext-1"})
	update := func(in args) args { in["CustomKeyStoreId"] = id; return in }

	if got := h.must("UpdateCustomKeyStore", update(args{"NewCustomKeyStoreName": "renamed"})).body; got != "{}" {
		t.Errorf("answers %q", got)
	}
	if e := h.settled(id); e["CustomKeyStoreName"] != "renamed" || e["ConnectionState"] != storeConnected {
		t.Errorf("%v", e)
	}
	h.refused("UpdateCustomKeyStore", update(args{}), "ValidationException", "You must specify at least one property to change.")
	h.refused("UpdateCustomKeyStore", update(args{"XksProxyUriEndpoint": "https://other.example.com"}), "CustomKeyStoreInvalidStateException",
		"XksProxyUriEndpoint can only be changed while the custom key store is DISCONNECTED; "+id+" is CONNECTED.")
	h.refused("UpdateCustomKeyStore", update(args{"KeyStorePassword": "1234567"}), "ValidationException", "You cannot specify KeyStorePassword for a custom key store of type EXTERNAL_KEY_STORE.")

	// A new credential while the store is connected: refused until the proxy has it, in force at once.
	credential := args{"XksProxyAuthenticationCredential": args{"AccessKeyId": proxyID, "RawSecretAccessKey": otherSecret}}
	h.refused("UpdateCustomKeyStore", update(credential), "XksProxyIncorrectAuthenticationCredentialException",
		"The external key store proxy could not authenticate the request. Check the proxy authentication credential of the external key store.")
	_, other := h.newKey(nil)
	p.serve(otherSecret, "ext-1", other)
	h.refused("Encrypt", args{"KeyId": key, "Plaintext": "AAAA"}, "KMSInvalidStateException",
		"The external key store proxy could not authenticate the request. Check the proxy authentication credential of the external key store.")
	h.must("UpdateCustomKeyStore", update(credential))
	h.must("Encrypt", args{"KeyId": key, "Plaintext": "AAAA"})

	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	h.must("UpdateCustomKeyStore", update(args{
		"XksProxyConnectivity": vpcEndpoint, "XksProxyVpcEndpointServiceName": "com.amazonaws.vpce.eu-west-1.vpce-svc-0123456789abcdef0",
	}))
	config := h.settled(id)["XksProxyConfiguration"].(map[string]any)
	if config["VpcEndpointServiceOwner"] != testAccount || config["Connectivity"] != vpcEndpoint {
		t.Errorf("%v", config)
	}
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	if e := h.settled(id); e["ConnectionState"] != storeConnected {
		t.Errorf("%v", e)
	}

	// A proxy that is away while the store connects: FAILED, until it is disconnected.
	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	p.down.Store(true)
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	if e := h.settled(id); e["ConnectionState"] != storeFailed || e["ConnectionErrorCode"] != "XKS_PROXY_INVALID_RESPONSE" {
		t.Errorf("%v", e)
	}
	h.refused("ConnectCustomKeyStore", args{"CustomKeyStoreId": id}, "CustomKeyStoreInvalidStateException",
		"The custom key store "+id+" is FAILED (XKS_PROXY_INVALID_RESPONSE); disconnect it, mend what is wrong, and connect it again.")
	h.refused("UpdateCustomKeyStore", update(args{"XksProxyUriPath": "/x" + proxyPath}), "CustomKeyStoreInvalidStateException",
		"XksProxyUriPath can only be changed while the custom key store is DISCONNECTED; "+id+" is FAILED.")
	h.refused("UpdateCustomKeyStore", update(args{"XksProxyAuthenticationCredential": args{"AccessKeyId": proxyID, "RawSecretAccessKey": proxySecret}}),
		"CustomKeyStoreInvalidStateException", "XksProxyAuthenticationCredential can only be changed while the custom key store is DISCONNECTED; "+id+" is FAILED.")
	h.must("UpdateCustomKeyStore", update(args{"NewCustomKeyStoreName": "failed"}))
	h.must("DisconnectCustomKeyStore", args{"CustomKeyStoreId": id})
	p.down.Store(false)
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	if e := h.settled(id); e["ConnectionState"] != storeConnected || e["ConnectionErrorCode"] != nil {
		t.Errorf("%v", e)
	}
	h.must("Encrypt", args{"KeyId": key, "Plaintext": "AAAA"})

	h.svc.stores.checkProxies()
	var metrics strings.Builder
	h.svc.WriteMetrics(&metrics)
	for _, want := range []string{
		`keymill_xks_proxy_requests_total{custom_key_store="` + id + `",call="health",outcome="InternalException"}`,
		`keymill_xks_proxy_key_managers{custom_key_store="` + id + `",state="ACTIVE"} 1`,
		`keymill_custom_key_store_throttled_total{custom_key_store="` + id + `"} 0`,
	} {
		if !strings.Contains(metrics.String(), want) {
			t.Errorf("%s is not in the metrics", want)
		}
	}
}

// A change while the store connects is what it connects with.
func TestExternalKeyStoreUpdateWhileConnecting(t *testing.T) {
	h, p := withProxy(t)
	id := h.must("CreateCustomKeyStore", externalStore("a store", proxyPath)).str("CustomKeyStoreId")
	held := &heldCall{make(chan struct{}), make(chan struct{})}
	p.hold.Store(held)
	h.must("ConnectCustomKeyStore", args{"CustomKeyStoreId": id})
	<-held.came
	p.serve(otherSecret)
	h.must("UpdateCustomKeyStore", args{"CustomKeyStoreId": id, "XksProxyAuthenticationCredential": args{"AccessKeyId": proxyID, "RawSecretAccessKey": otherSecret}})
	close(held.free)
	if e := h.settled(id); e["ConnectionState"] != storeConnected {
		t.Errorf("%v", e)
	}
}

func TestKeyStorePagesAndLimit(t *testing.T) {
	const most = 12
	quotas := quota.None()
	quotas.Resources.CustomKeyStores = most
	h := newHarnessWith(t, quotas)
	store := func(i int) args {
		in := externalStore(fmt.Sprint("store ", i), fmt.Sprintf("/p%d/kms/xks/v1", i))
		in["XksProxyConnectivity"], in["XksProxyUriEndpoint"] = vpcEndpoint, fmt.Sprintf("https://p%d.example.com", i)
		in["XksProxyVpcEndpointServiceName"] = fmt.Sprintf("com.amazonaws.vpce.eu-west-1.vpce-svc-%017x", i)
		return in
	}
	var ids []string
	for i := range most {
		ids = append(ids, h.must("CreateCustomKeyStore", store(i)).str("CustomKeyStoreId"))
	}
	h.refused("CreateCustomKeyStore", store(most), "LimitExceededException", "The account has 12 custom key stores in this Region, which is the limit.")
	seen := make(map[string]bool)
	marker := ""
	for {
		in := args{"Limit": 5}
		if marker != "" {
			in["Marker"] = marker
		}
		page := h.must("DescribeCustomKeyStores", in)
		for _, e := range page.fields["CustomKeyStores"].([]any) {
			seen[e.(map[string]any)["CustomKeyStoreId"].(string)] = true
		}
		if page.fields["Truncated"] == false {
			break
		}
		marker = page.str("NextMarker")
	}
	if len(seen) != len(ids) {
		t.Errorf("%d of %d stores", len(seen), len(ids))
	}
	h.must("DeleteCustomKeyStore", args{"CustomKeyStoreId": ids[0]})
	if all := h.must("DescribeCustomKeyStores", nil).fields["CustomKeyStores"].([]any); len(all) != len(ids)-1 {
		t.Errorf("%d stores after a deletion", len(all))
	}
}

// A store that was connected is connected after a restart, with its proxy or without.
func TestKeyStoreAfterRestart(t *testing.T) {
	h, p := withProxy(t)
	id := h.connectedStore(externalStore("a store", proxyPath))
	key, _ := h.newKey(args{"Origin": typeExternal, "CustomKeyStoreId": id, "XksKeyId": "ext-1"})
	blob := h.must("Encrypt", args{"KeyId": key, "Plaintext": "AAAA"}).str("CiphertextBlob")
	again := func() {
		h.restart()
		if err := p.stand(h).Load(p.file); err != nil {
			t.Fatal(err)
		}
	}
	again()
	if e := h.settled(id); e["ConnectionState"] != storeConnected {
		t.Errorf("%v", e)
	}
	st := h.svc.stores.get(storeName{testAccount, testRegion, id})
	opened := func() {
		for st.device.Load() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	opened()
	if got := h.must("Decrypt", args{"CiphertextBlob": blob}).str("Plaintext"); got != "AAAA" {
		t.Errorf("%q", got)
	}

	p.down.Store(true)
	again()
	st = h.svc.stores.get(storeName{testAccount, testRegion, id})
	h.refused("Decrypt", args{"CiphertextBlob": blob}, "KMSInvalidStateException",
		"The external key store proxy cannot be reached. If this happens again, check that it is running and that its endpoint and network are set up correctly.")
	p.down.Store(false)
	opened() // by itself, at its next try
	if got := h.must("Decrypt", args{"CiphertextBlob": blob}).str("Plaintext"); got != "AAAA" {
		t.Errorf("%q", got)
	}
}
