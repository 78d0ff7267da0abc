package xks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"keymill/daemon/sigv4"
	"keymill/daemon/wire"
	"keymill/engine"
)

// sdk signs a request with the signer of the AWS SDK, as KMS might: whatever
// headers there are.
func (r *rig) sdk(body string, at time.Time, id, secret, service, region string) func(*http.Request) {
	return func(req *http.Request) {
		req.Header.Set("Content-Type", "application/json")
		sum := sha256.Sum256([]byte(body))
		err := v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, req, hex.EncodeToString(sum[:]), service, region, at)
		if err != nil {
			r.Fatal(err)
		}
	}
}

func (r *rig) signed(body string) func(*http.Request) {
	return r.sdk(body, r.now, testID, testSecret, Service, testRegion)
}

// call posts a body signed by the SDK and returns status and errorName.
func (r *rig) call(path, body string) (int, string) {
	r.Helper()
	status, _, answer := r.post("POST", path, body, r.signed(body))
	return status, errorName(r, status, answer)
}

func errorName(t testing.TB, status int, answer string) string {
	t.Helper()
	if status == http.StatusOK {
		return ""
	}
	var e struct{ ErrorName, ErrorMessage string }
	if err := json.Unmarshal([]byte(answer), &e); err != nil {
		t.Fatalf("%d %q: %v", status, answer, err)
	}
	if len(e.ErrorMessage) >= 512 || printable(e.ErrorMessage, 512) != e.ErrorMessage {
		t.Errorf("errorMessage %q", e.ErrorMessage)
	}
	return e.ErrorName
}

const base = testPrefix + PathSuffix

// body of a request for an action, with some members changed.
func bodyOf(change func(*Request)) string {
	q := &Request{Call: testCall, Algorithm: AESGCM, Plaintext: []byte("12345"), Integrity: SHA256}
	q.Call.Operation = "Encrypt"
	if change != nil {
		change(q)
	}
	return string(q.Append(nil))
}

// TestSignerAgainstSDK: the Client's signature is what the AWS SDK computes.
func TestSignerAgainstSDK(t *testing.T) {
	s := sigv4.NewSigner(testID, []byte(testSecret), testRegion, Service)
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	for _, path := range []string{"/kms/xks/v1/health", "/a-b/c_d/kms/xks/v1/keys/key.1_-/encrypt"} {
		body := bodyOf(nil)
		req, err := http.NewRequest("POST", "https://"+testHost+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(body))
		cred := aws.Credentials{AccessKeyID: testID, SecretAccessKey: testSecret}
		if err := v4.NewSigner().SignHTTP(context.Background(), cred, req, hex.EncodeToString(sum[:]), Service, testRegion, now); err != nil {
			t.Fatal(err)
		}
		date, auth := s.Sign(testHost, path, []byte(body), now)
		if date != req.Header.Get("X-Amz-Date") || auth != req.Header.Get("Authorization") {
			t.Errorf("%s\nwant %s", auth, req.Header.Get("Authorization"))
		}
	}
}

// TestPathsAndMethods: what is no call is 404, a call by another method 405,
// and a load balancer has a path of its own.
func TestPathsAndMethods(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{
		"/", "/kms/xks/v1/health", "/other/kms/xks/v1/health", base, base + "/", base + "/keys", base + "/keys/one", base + "/keys/one/sign",
		base + "/keys//encrypt", base + "/keys/../encrypt", base + "/keys/a%2fb/encrypt", base + "/key/one/encrypt", base + "/health/", base + "/health?x=1",
		"/" + base + "/health", base + "/keys/" + strings.Repeat("a", 129) + "/encrypt", "/test/kms/xks/v2/health",
	} {
		if status, name := r.call(path, "{}"); status != 404 || name != "InvalidUriPathException" {
			t.Errorf("%s: %d %s", path, status, name)
		}
	}
	for _, path := range []string{"/health", "/keys/one/metadata", "/keys/one/encrypt", "/keys/one/decrypt", "/keys/unknown/decrypt"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS"} {
			if status, h, _ := r.post(method, base+path, "", nil); status != 405 || h.Get("Allow") != "POST" {
				t.Errorf("%s %s: %d", method, path, status)
			}
		}
	}
	if status, _, body := r.post("GET", ProbePath, "", nil); status != 200 || body != "ok\n" {
		t.Errorf("probe: %d %q", status, body)
	}
	s := NewServer(ServerOptions{Keys: r.keys, Logger: r.conf.Logger})
	r.http = r.serve(s)
	if status, name := r.call(base+"/health", "{}"); status != 404 || name != "InvalidUriPathException" {
		t.Errorf("without a file: %d %s", status, name)
	}
}

// TestAuthentication: the signature decides, before anything of the body counts.
func TestAuthentication(t *testing.T) {
	r := newRig(t)
	path, body := base+"/keys/one/encrypt", bodyOf(nil)
	ok := r.signed(body)
	for name, c := range map[string]struct {
		sign func(*http.Request)
		want int
	}{
		"good":                    {ok, 200},
		"no signature":            {func(*http.Request) {}, 401},
		"another region":          {r.sdk(body, r.now, testID, testSecret, Service, "us-west-2"), 200},
		"five minutes early":      {r.sdk(body, r.now.Add(-5*time.Minute), testID, testSecret, Service, testRegion), 200},
		"five minutes late":       {r.sdk(body, r.now.Add(5*time.Minute), testID, testSecret, Service, testRegion), 200},
		"more than that early":    {r.sdk(body, r.now.Add(-5*time.Minute-time.Second), testID, testSecret, Service, testRegion), 401},
		"more than that late":     {r.sdk(body, r.now.Add(5*time.Minute+time.Second), testID, testSecret, Service, testRegion), 401},
		"unknown access key":      {r.sdk(body, r.now, "BCDEFGHIJKLMNOPQRSTA", testSecret, Service, testRegion), 401},
		"wrong secret":            {r.sdk(body, r.now, testID, strings.Repeat("x", 43), Service, testRegion), 401},
		"another service":         {r.sdk(body, r.now, testID, testSecret, "kms", testRegion), 401},
		"another body":            {r.signed(body + " "), 401},
		"more headers signed":     {func(q *http.Request) { q.Header.Set("X-Custom", "a  b"); ok(q) }, 200},
		"a signed header changed": {func(q *http.Request) { q.Header.Set("X-Custom", "a"); ok(q); q.Header.Set("X-Custom", "b") }, 401},
		"another host":            {func(q *http.Request) { ok(q); q.Host = "other.example.com" }, 401},
		"session token":           {func(q *http.Request) { q.Header.Set("X-Amz-Security-Token", "t"); ok(q) }, 401},
	} {
		status, _, answer := r.post("POST", path, body, c.sign)
		if status != c.want || status == 401 && errorName(t, status, answer) != "AuthenticationFailedException" {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	// A broken body of nobody is 401, an unknown key of nobody too.
	for _, path := range []string{path, base + "/keys/unknown/encrypt"} {
		if status, _, _ := r.post("POST", path, "{", nil); status != 401 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

// TestCredentialRotation: two credentials at once, changed under way, and none
// of another prefix.
func TestCredentialRotation(t *testing.T) {
	r := newRig(t)
	const newID, newSecret = "ZYXWVUTSRQPONMLKJIHG", "abcdefghijklmnopqrstuvwxyz0123456789/+=ABCDE"
	with := func(prefix string, creds ...string) string {
		s := "\n  - prefix: " + prefix + "\n    regions: [eu-west-1]\n    credentials:\n"
		for i := 0; i < len(creds); i += 2 {
			s += "      - {access-key-id: " + creds[i] + ", secret-access-key: " + creds[i+1] + "}\n"
		}
		return s
	}
	body := string((&Request{Call: Call{Operation: "KmsHealthCheck", RequestID: "id"}}).Append(nil))
	try := func(path, id, secret, region string) int {
		status, _, _ := r.post("POST", path, body, r.sdk(body, r.now, id, secret, Service, region))
		return status
	}
	health := base + "/health"
	for _, c := range []struct {
		file     string
		old, new int
	}{
		{"stores:" + with("/test", testID, testSecret), 200, 401},
		{"stores:" + with("/test", testID, testSecret, newID, newSecret), 200, 200},
		{"stores:" + with("/test", newID, newSecret) + with("/other", testID, testSecret), 401, 200},
		{"stores:" + with("/other", newID, newSecret), 404, 404},
	} {
		r.load(c.file)
		if a, b := try(health, testID, testSecret, testRegion), try(health, newID, newSecret, testRegion); a != c.old || b != c.new {
			t.Errorf("%s: %d %d", c.file, a, b)
		}
	}
	if status := try("/other/kms/xks/v1/health", newID, newSecret, "eu-west-1"); status != 200 {
		t.Error(status)
	}
	if status := try("/other/kms/xks/v1/health", newID, newSecret, "eu-west-2"); status != 401 {
		t.Errorf("a region that is not in the list: %d", status)
	}
}

// TestServedErrors: each error the server can give, with its status.
func TestServedErrors(t *testing.T) {
	r := newRig(t)
	one := "key/00000000-0000-0000-0000-000000000001"
	enc, dec, meta := base+"/keys/one/encrypt", base+"/keys/one/decrypt", base+"/keys/one/metadata"
	good := bodyOf(nil)
	for _, c := range []struct {
		name, path, body string
		status           int
		want             string
		prepare          func()
	}{
		{"good", enc, good, 200, "", nil},
		{"broken body", enc, "{", 400, "ValidationException", nil},
		{"no body", enc, "", 400, "ValidationException", nil},
		{"body too long", enc, good + strings.Repeat(" ", MaxBody), 400, "ValidationException", nil},
		{"algorithm", enc, bodyOf(func(q *Request) { q.Algorithm = "AES_CBC" }), 400, "ValidationException", nil},
		{"plaintext too long", enc, bodyOf(func(q *Request) { q.Plaintext = make([]byte, 4301) }), 501, "UnsupportedOperationException", nil},
		{"AAD too long", enc, bodyOf(func(q *Request) { q.AAD = make([]byte, 8193) }), 501, "UnsupportedOperationException", nil},
		{"unknown operation", enc, bodyOf(func(q *Request) { q.Call.Operation = "Future" }), 200, "", nil},
		{"unknown key", base + "/keys/two/encrypt", good, 404, "KeyNotFoundException", nil},
		{"key of another case", base + "/keys/One/encrypt", good, 404, "KeyNotFoundException", nil},
		{"key that is gone", base + "/keys/gone/encrypt", good, 404, "KeyNotFoundException", nil},
		{"no ciphertext of ours", dec, bodyOf(func(q *Request) {
			q.Plaintext, q.Ciphertext, q.IV, q.Tag = nil, []byte("12345"), make([]byte, 12), make([]byte, 16)
		}), 400, "InvalidCiphertextException", nil},
		{"store that fails", enc, good, 500, "InternalException", func() { r.keys.err = errors.New("disk") }},
		{"disabled", enc, good, 400, "InvalidStateException", func() { r.keys.err = nil; r.keys.change(one, func(k *ServedKey) { k.State = "Disabled" }) }},
		{"disabled, metadata", meta, good, 200, "", nil},
		{"pending deletion", dec, bodyOf(func(q *Request) {
			q.Plaintext, q.Ciphertext, q.IV, q.Tag = nil, []byte("12345"), make([]byte, 12), make([]byte, 16)
		}), 400, "InvalidStateException", func() { r.keys.change(one, func(k *ServedKey) { k.State = "PendingDeletion" }) }},
		{"quota", enc, good, 429, "ThrottlingException", func() { r.keys.change(one, func(k *ServedKey) { k.Admit = func() bool { return false } }) }},
		{"quota, metadata", meta, good, 429, "ThrottlingException", nil},
		{"within the quota", dec, good, 400, "ValidationException", func() { r.keys.change(one, func(k *ServedKey) { k.Admit = func() bool { return true } }) }},
		{"not served", enc, good, 400, "InvalidKeyUsageException", func() { r.keys.change(one, func(k *ServedKey) { k.State, k.Served = "Enabled", false }) }},
		{"slow root", enc, good, 503, "DependencyTimeoutException", func() {
			r.keys.change(one, func(k *ServedKey) { k.Served, k.Handle = true, failing{k.Handle, context.DeadlineExceeded} })
		}},
		{"disabled since", enc, good, 400, "InvalidStateException", func() {
			r.keys.change(one, func(k *ServedKey) { k.Handle = failing{k.Handle, wire.NewError(wire.DisabledException, "disabled")} })
		}},
		{"deleted since", enc, good, 404, "KeyNotFoundException", func() {
			r.keys.change(one, func(k *ServedKey) { k.Handle = failing{k.Handle, wire.NewError(wire.NotFoundException, "gone")} })
		}},
		{"root that fails", enc, good, 500, "InternalException", func() {
			r.keys.change(one, func(k *ServedKey) { k.Handle = failing{k.Handle, errors.New("token")} })
		}},
		{"unknown material", enc, good, 500, "InternalException", func() {
			k := newServedKey(t, 7, 1)
			k.Materials = nil
			r.keys.change(one, func(have *ServedKey) { *have = k })
		}},
		{"busy", enc, good, 429, "ThrottlingException", func() {
			for range maxServed {
				r.server.places <- struct{}{}
			}
		}},
	} {
		if c.prepare != nil {
			c.prepare()
		}
		if status, name := r.call(c.path, c.body); status != c.status || name != c.want {
			t.Errorf("%s: %d %s, want %d %s", c.name, status, name, c.status, c.want)
		}
	}
}

// failing is a handle whose material cannot be had.
type failing struct {
	engine.Key
	err error
}

func (f failing) Do(ops []engine.Op) {
	for i := range ops {
		ops[i].Err = engine.ErrPending
	}
}
func (f failing) Warm(context.Context, []engine.Op) error { return f.err }

// TestAuthorisation: the rules of a key, and that the log names the one that denied.
func TestAuthorisation(t *testing.T) {
	r := newRig(t)
	path := base + "/keys/strict.key-2_/"
	for _, c := range []struct {
		name, action string
		change       func(*Call)
		denies       string
	}{
		{"good", "encrypt", func(*Call) {}, ""},
		{"a session", "encrypt", func(c *Call) { c.PrincipalARN = "arn:aws:sts::111122223333:assumed-role/batch/i-1" }, ""},
		{"another role", "encrypt", func(c *Call) { c.PrincipalARN = "arn:aws:iam::111122223333:role/apple" }, "principals"},
		{"another session", "encrypt", func(c *Call) { c.PrincipalARN = "arn:aws:sts::111122223333:assumed-role/other/i-1" }, "principals"},
		{"another account's key", "encrypt", func(c *Call) { c.KeyARN = strings.Replace(kmsARN, "1111", "4444", 1) }, "accounts"},
		{"no ARN", "encrypt", func(c *Call) { c.KeyARN = "key" }, "accounts"},
		{"another operation", "encrypt", func(c *Call) { c.Operation = "ReEncrypt" }, "operations"},
		{"metadata", "metadata", func(c *Call) { c.KeyARN, c.Operation = "", "CreateKey" }, ""},
		{"metadata for another account", "metadata", func(c *Call) {
			c.KeyARN, c.Operation, c.PrincipalARN = "", "CreateKey", strings.Replace(callerARN, "1111", "4444", 1)
		}, "accounts"},
		{"metadata for AWS", "metadata", func(c *Call) { c.KeyARN, c.PrincipalARN = "", "AWS Internal" }, "accounts"},
	} {
		status, name := r.call(path+c.action, bodyOf(func(q *Request) { c.change(&q.Call) }))
		if c.denies == "" && status != 200 || c.denies != "" && (status != 403 || name != "AccessDeniedException") {
			t.Errorf("%s: %d %s", c.name, status, name)
		}
		log := r.log.String()
		last := log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:]
		if c.denies != "" && !strings.Contains(last, `cause="rule: `+c.denies) {
			t.Errorf("%s: the log says %s", c.name, last)
		}
	}
}

// TestTampering: nothing of a ciphertext can be changed, metadata included; and
// only its own key opens it.
func TestTampering(t *testing.T) {
	r := newRig(t)
	c := r.client()
	ctx := context.Background()
	aad := []byte("aad")
	s, err := c.Encrypt(ctx, "one", []byte("plaintext"), aad, testCall)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.IV) != 16 || len(s.Tag) != 16 || len(s.Metadata) != 20 || len(s.Ciphertext) != 9 {
		t.Fatalf("%+v", s)
	}
	refused := func(name string, s engine.Sealed, aad []byte) {
		t.Helper()
		if _, err := c.Decrypt(ctx, "one", s, aad, testCall); ReasonOf(err) != InvalidCiphertextException {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, part := range map[string][]byte{"metadata": s.Metadata, "IV": s.IV, "tag": s.Tag, "ciphertext": s.Ciphertext} {
		for i := range part {
			part[i] ^= 1
			refused(fmt.Sprintf("%s byte %d", name, i), s, aad)
			part[i] ^= 1
		}
	}
	refused("other AAD", s, []byte("aae"))
	refused("no AAD", s, nil)
	for _, n := range []int{0, 19} {
		cut := s
		cut.Metadata = s.Metadata[:n]
		refused(fmt.Sprintf("metadata of %d", n), cut, aad)
	}
	cut := s
	cut.IV = s.IV[:12]
	refused("IV of 12", cut, aad)
	r.load(strings.Replace(testFile, "alias/gone", "alias/other", 1))
	r.keys.change("alias/other", func(k *ServedKey) { *k = newServedKey(t, 3, 1) })
	if _, err := c.Decrypt(ctx, "gone", s, aad, testCall); ReasonOf(err) != InvalidCiphertextException {
		t.Errorf("another key: %v", err)
	}
	if got, err := c.Decrypt(ctx, "one", s, aad, testCall); err != nil || string(got) != "plaintext" {
		t.Errorf("unchanged: %v", err)
	}
}

// TestRotatedKey: what an older version encrypted decrypts, with the version in
// use and without naming it.
func TestRotatedKey(t *testing.T) {
	id := engine.KeyID{ID: [16]byte{5}}
	list, src := versions(t, id, 3)
	var sealed []*Response
	at := func(n int) *ServedKey {
		k := &ServedKey{ID: id, Handle: engine.NewLocalKey(id, engine.SymmetricDefault, engine.EncryptDecrypt, list[:n], n-1, nil, src)}
		for _, v := range list[:n] {
			k.Materials = append(k.Materials, v.MaterialID)
		}
		return k
	}
	for n := 1; n <= 3; n++ {
		s, err := at(n).encrypt(&Request{Plaintext: []byte{byte(n)}, AAD: []byte("a")})
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, s)
	}
	k := at(3)
	for i, s := range sealed {
		got, err := k.open(s.Ciphertext, s.Metadata, s.IV, s.Tag, []byte("a"))
		if err != nil || got[0] != byte(i+1) {
			t.Errorf("version %d: %v", i+1, err)
		}
	}
	// A handle that is behind or ahead of the list: the one in use is found.
	k.Materials = append(k.Materials, engine.MaterialID{1})
	if _, err := k.encrypt(&Request{Plaintext: []byte("a")}); err != nil {
		t.Error(err)
	}
	s := sealed[2]
	if _, err := at(2).open(s.Ciphertext, s.Metadata, s.IV, s.Tag, []byte("a")); err != engine.ErrInvalidCiphertext {
		t.Errorf("material that is gone: %v", err)
	}
}

// TestAssociated: lengths as specified; and no canonical encryption context is
// ever what the proxy authenticates.
func TestAssociated(t *testing.T) {
	m := make([]byte, 1+materialPart)
	for _, n := range []int{0, 1, 255, 256, MaxAAD} {
		aad := bytes.Repeat([]byte{0}, n)
		got := associated(aad, m)
		want := append(append(append([]byte{byte(n >> 8), byte(n)}, aad...), 12), m...)
		if !bytes.Equal(got, want) {
			t.Errorf("%d: %x", n, got)
		}
		length := uint64(got[0])<<24 | uint64(got[1])<<16 | uint64(got[2])<<8 | uint64(got[3])
		if n > 0 && length < uint64(len(got)) || n == 0 && length < uint64(len(got)) {
			t.Errorf("an AAD of %d bytes could be an encryption context", n)
		}
	}
}

// corrupting is a handle whose decryption yields something else.
type corrupting struct{ engine.Key }

func (c corrupting) Do(ops []engine.Op) {
	c.Key.Do(ops)
	if ops[0].Verb == engine.Decrypt && ops[0].Err == nil && len(ops[0].Out) > 0 {
		ops[0].Out[0] ^= 1
	}
}

// TestCheckDecryption: what does not decrypt to what was given is not answered.
func TestCheckDecryption(t *testing.T) {
	r := newRig(t)
	r.keys.change("key/00000000-0000-0000-0000-000000000001", func(k *ServedKey) { k.Handle = corrupting{k.Handle} })
	if status, name := r.call(base+"/keys/one/encrypt", bodyOf(nil)); status != 500 || name != "InternalException" {
		t.Errorf("%d %s", status, name)
	}
}

// TestServedHealth: the check goes through the key, is remembered for a while,
// and tells a key from the appliance.
func TestServedHealth(t *testing.T) {
	r := newRig(t)
	c := r.client()
	one := "key/00000000-0000-0000-0000-000000000001"
	status := func() string {
		t.Helper()
		h, err := c.Health(context.Background(), "KmsHealthCheck", "id")
		if err != nil {
			t.Fatal(err)
		}
		return h.Fleet[0].Health
	}
	for _, step := range []struct {
		change func(*ServedKey)
		err    error
		want   string
	}{
		{func(*ServedKey) {}, nil, HealthActive},
		{func(k *ServedKey) { k.State = "Disabled" }, nil, HealthDegraded},
		{func(k *ServedKey) { k.State = "Enabled" }, errors.New("disk"), HealthUnavailable},
		{func(k *ServedKey) {}, ErrNoKey, HealthDegraded},
		{func(k *ServedKey) { k.Handle = failing{k.Handle, errors.New("token")} }, nil, HealthUnavailable},
	} {
		r.keys.change(one, step.change)
		r.keys.err = step.err
		before := status()
		r.now = r.now.Add(healthTime - time.Second)
		if again := status(); again != before {
			t.Errorf("%s was not remembered: %s", before, again)
		}
		r.now = r.now.Add(time.Second)
		if got := status(); got != step.want {
			t.Errorf("%s, want %s", got, step.want)
		}
	}
	r.load(strings.Replace(testFile, "    keys:", "    health-key: arn:aws:kms:eu-west-1:000000000000:alias/two\n    keys:", 1))
	if got := status(); got != HealthActive {
		t.Errorf("with a key for it: %s", got)
	}
	r.load(testFile[:strings.Index(testFile, "    keys:")])
	if got := status(); got != HealthActive {
		t.Errorf("without keys: %s", got)
	}
}

// TestFile: what is wrong with a file is said, and never the secret.
func TestFile(t *testing.T) {
	const secret = "secret-access-key: 0123456789012345678901234567890123456789abc"
	replace := func(old, new string) string {
		if !strings.Contains(testFile, old) {
			t.Fatalf("%q is not in the file", old)
		}
		return strings.Replace(testFile, old, new, 1)
	}
	cred := "\n      - access-key-id: ABCDEFGHIJKLMNOPQRST\n        " + secret
	for want, text := range map[string]string{
		"nothing in it":                   "",
		"there are none":                  "stores: []",
		"field store not found":           "store: []",
		"field prefx not found":           replace("prefix:", "prefx:"),
		"must begin with a slash":         replace("/test", "test"),
		"prefix \"/a//b\"":                replace("/test", "/a//b"),
		"another store's too":             testFile + "  - prefix: /test\n    credentials:" + cred,
		"give one":                        "stores:\n  - prefix: /test\n    credentials: []",
		"credentials: give one":           "stores:\n  - credentials:" + strings.Repeat(cred, 3),
		"the same access-key-id":          "stores:\n  - credentials:" + strings.Repeat(cred, 2),
		"access-key-id must be":           replace("ABCDEFGHIJKLMNOPQRST", "ABCDEFGHIJKLMNOPQRS1"),
		"secret-access-key must be":       replace(secret, secret[:40]),
		"a value of the wrong kind":       replace(secret, "secret-access-key: [0123456789012345678901234567890123456789abc]"),
		"external-id \"..\"":              replace("external-id: one", "external-id: .."),
		"external-id \"gone\" is there":   replace("external-id: one", "external-id: gone"),
		"is no ARN of a KMS key or alias": replace("arn:aws:kms:eu-west-1:000000000000:alias/two", "alias/two"),
		"health-key":                      replace("    keys:", "    health-key: two\n    keys:"),
		"is not 12 digits":                replace(`"111122223333"`, `"11112222333"`),
		"may have a * at its end only":    replace("role/app", "role/*/app"),
		"more than one document":          testFile + "---\n{}",
		"did not find expected":           "stores: [",
	} {
		_, err := parseFile([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		} else if strings.Contains(err.Error(), "0123456789") {
			t.Errorf("%q shows the secret: %v", want, err)
		}
	}
	if _, err := parseFile(bytes.Repeat([]byte("#"), maxFile+1)); err == nil {
		t.Error("a huge file is read")
	}

	name := filepath.Join(t.TempDir(), "xks.yaml")
	if err := os.WriteFile(name, []byte(testFile), 0o644); err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerOptions{Keys: &testKeys{}})
	if err := s.Load(name); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file open to others: %v", err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Load(name); err != nil {
		t.Fatal(err)
	}
	before := s.stores.Load()
	if err := os.WriteFile(name, []byte("stores: []"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Load(name); err == nil || s.stores.Load() != before {
		t.Errorf("a mistake is put in force: %v", err)
	}
	if err := s.Load(t.TempDir()); err == nil {
		t.Error("a directory is read")
	}
	if err := s.Load(name + "x"); err == nil {
		t.Error("a missing file is passed over")
	}
	if c := (credential{"id", "secret"}); strings.Contains(fmt.Sprintf("%v %+v %#v", c, c, c), "secret") {
		t.Error("a credential prints its secret")
	}

	if err := os.WriteFile(name, []byte(testFile), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := ConsoleConfig(name, testPrefix)
	if err != nil {
		t.Fatal(err)
	}
	var console struct {
		XksProxyUriPath                  string
		XksProxyAuthenticationCredential struct{ AccessKeyId, RawSecretAccessKey string }
	}
	if err := json.Unmarshal(text, &console); err != nil || console.XksProxyUriPath != base ||
		console.XksProxyAuthenticationCredential.AccessKeyId != testID || console.XksProxyAuthenticationCredential.RawSecretAccessKey != testSecret {
		t.Errorf("%s: %v", text, err)
	}
	if _, err := ConsoleConfig(name, "/x"); err == nil || !strings.Contains(err.Error(), `"/test"`) {
		t.Error(err)
	}
}

// TestMetrics: outcomes are counted, and uses of a key where they succeed.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	var used []Action
	r.keys.change("key/00000000-0000-0000-0000-000000000001", func(k *ServedKey) { k.Used = func(a Action) { used = append(used, a) } })
	r.call(base+"/keys/one/encrypt", bodyOf(nil))
	r.call(base+"/keys/one/metadata", bodyOf(nil))
	r.call(base+"/keys/one/decrypt", bodyOf(func(q *Request) {
		q.Plaintext, q.Ciphertext, q.IV, q.Tag = nil, []byte("12345"), make([]byte, 12), make([]byte, 16)
	}))
	if len(used) != 1 || used[0] != Encrypt {
		t.Errorf("used %v", used)
	}
	r.call(base+"/nothing", "")
	var b bytes.Buffer
	r.server.WriteMetrics(&b)
	for _, want := range []string{`keymill_xks_requests_total{call="encrypt",outcome="ok"} 1`, `{call="unknown",outcome="InvalidUriPathException"} 1`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s is not in\n%s", want, &b)
		}
	}
}
