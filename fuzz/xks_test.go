package fuzz

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"keymill/daemon/sigv4"
	"keymill/daemon/wire"
	"keymill/daemon/xks"
	"keymill/engine"
)

var xksCall = xks.Call{PrincipalARN: "arn:aws:iam::111122223333:role/app", KeyARN: "arn:aws:kms:us-east-1:111122223333:key/1", Operation: "Encrypt", RequestID: "id"}

func xksAction(n uint8) xks.Action { return xks.Health + xks.Action(n%4) }

// FuzzXKSRequest reads any bytes as a request of the XKS proxy protocol. What is
// accepted keeps the protocol's bounds, is JSON to the standard library, and reads the same
// once more after it was written.
func FuzzXKSRequest(f *testing.F) {
	for n := range uint8(4) {
		q := xks.Request{Call: xksCall, Algorithm: xks.AESGCM, Plaintext: []byte("p"), Ciphertext: []byte("c"), AAD: []byte("a"),
			Metadata: []byte("m"), IV: make([]byte, 12), Tag: make([]byte, 16), Integrity: xks.SHA256}
		f.Add(n, q.Append(nil))
	}
	f.Add(uint8(2), []byte(`{"requestMetadata":{"awsPrincipalArn":null,"x":[1,{"y":"\u002b"}]},"plaintext":"\u002b\/8="}`))
	f.Fuzz(func(t *testing.T, n uint8, body []byte) {
		a := xksAction(n)
		before := bytes.Clone(body)
		var d, d2 wire.Decoder
		q, err := xks.DecodeRequest(&d, a, body)
		if !bytes.Equal(before, body) {
			t.Fatal("the body was changed")
		}
		if err != nil {
			return
		}
		if !json.Valid(body) {
			t.Fatalf("accepted %q, which is no JSON", body)
		}
		if len(body) > xks.MaxBody || a != xks.Health && q.Call.PrincipalARN == "" || q.Call.Operation == "" || q.Call.RequestID == "" {
			t.Fatalf("accepted %+v", q)
		}
		if a >= xks.Encrypt && (len(q.AAD) > xks.MaxAAD || q.Algorithm != xks.AESGCM || a == xks.Encrypt && len(q.Plaintext) > xks.MaxPlaintext ||
			a == xks.Decrypt && (len(q.Ciphertext) > xks.MaxPlaintext || len(q.Metadata) > xks.MaxMetadata || len(q.Tag) != 16)) {
			t.Fatalf("accepted %+v", q)
		}
		written := q.Append(nil)
		if len(written) > xks.MaxBody {
			return // what is written has all its names
		}
		again, err := xks.DecodeRequest(&d2, a, written)
		if err != nil || !reflect.DeepEqual(q, again) {
			t.Fatalf("%+v became %+v: %v", q, again, err)
		}
	})
}

// FuzzXKSResponse does the same for responses, errors among them.
func FuzzXKSResponse(f *testing.F) {
	for n, r := range map[uint8]*xks.Response{
		0: {FleetSize: 1, Vendor: "v", Model: "m", Maker: "e", Fleet: []xks.Manager{{ID: "a", Model: "b", Health: xks.HealthActive}}},
		1: {KeySpec: xks.SpecAES256, KeyUsage: []string{xks.UsageEncrypt}, KeyStatus: xks.StatusEnabled},
		2: {Ciphertext: []byte("c"), Metadata: []byte("m"), IV: make([]byte, 16), Tag: make([]byte, 16), Integrity: make([]byte, 32)},
		3: {Plaintext: []byte("p")},
	} {
		f.Add(n, r.Append(nil))
	}
	f.Add(uint8(0), []byte(`{"errorName":"KeyNotFoundException","errorMessage":"text\n"}`))
	f.Fuzz(func(t *testing.T, n uint8, body []byte) {
		a := xksAction(n)
		var d, d2 wire.Decoder
		if name, message, err := xks.DecodeError(&d, body); err == nil {
			if name == "" || len(message) >= 512 || strings.Trim(message, printableASCII) != "" {
				t.Fatalf("error %q %q", name, message)
			}
		}
		r, err := xks.DecodeResponse(&d, a, body)
		if err != nil {
			return
		}
		if !json.Valid(body) {
			t.Fatalf("accepted %q, which is no JSON", body)
		}
		if a == xks.Encrypt {
			if len(r.Metadata) > xks.MaxMetadata || len(r.Tag) != 16 || len(r.IV) != 12 && len(r.IV) != 16 {
				t.Fatalf("accepted %+v", r)
			}
			q := &xks.Request{Plaintext: r.Ciphertext, Integrity: xks.SHA256}
			sum := xks.Integrity(nil, r.Metadata, r.IV, r.Ciphertext, r.Tag)
			if (r.Answers(a, q) == nil) != bytes.Equal(sum[:], r.Integrity) {
				t.Fatal("the integrity value decides nothing")
			}
		}
		written := r.Append(nil)
		if len(written) > xks.MaxBody {
			return
		}
		again, err := xks.DecodeResponse(&d2, a, written)
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v became %+v: %v", r, again, err)
		}
	})
}

const printableASCII = " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"

type noKeys struct{}

func (noKeys) ServedKey(xks.KeyRef) (xks.ServedKey, error) { return xks.ServedKey{}, xks.ErrNoKey }

// FuzzXKSServer sends any path, method and body to the served proxy, signed and
// not. Every answer is one of the protocol; without a signature none but a
// refusal; and nothing panics.
func FuzzXKSServer(f *testing.F) {
	file := filepath.Join(f.TempDir(), "xks.yml")
	text := `stores:
  - credentials:
      - {access-key-id: ABCDEFGHIJKLMNOPQRST, secret-access-key: 0123456789012345678901234567890123456789abc}
    keys:
      - {external-id: one, key: "arn:aws:kms:us-east-1:000000000000:alias/one", accounts: ["111122223333"]}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	s := xks.NewServer(xks.ServerOptions{Keys: noKeys{}, Clock: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)})
	if err := s.Load(file); err != nil {
		f.Fatal(err)
	}
	signer := sigv4.NewSigner("ABCDEFGHIJKLMNOPQRST", []byte("0123456789012345678901234567890123456789abc"), "us-east-1", xks.Service)
	q := xks.Request{Call: xksCall, Algorithm: xks.AESGCM, Plaintext: []byte("p")}
	f.Add("POST", "/kms/xks/v1/keys/one/encrypt", q.Append(nil), true)
	f.Add("POST", "/kms/xks/v1/health", q.Append(nil), true)
	f.Add("GET", "/kms/xks/v1/keys/../metadata", []byte("{}"), false)
	f.Fuzz(func(t *testing.T, method, path string, body []byte, sign bool) {
		if method != "POST" && method != "GET" {
			method = "PUT"
		}
		r := httptest.NewRequest(method, "https://xks.example.com/", bytes.NewReader(body))
		r.RequestURI = path
		if sign {
			date, auth := signer.Sign(r.Host, path, body, now)
			r.Header.Set("X-Amz-Date", date)
			r.Header.Set("Authorization", auth)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		answer, _ := io.ReadAll(w.Result().Body)
		switch {
		case path == xks.ProbePath && method == "GET", w.Code == http.StatusMethodNotAllowed && method != "POST":
		case w.Code == http.StatusOK:
			if !sign || !strings.HasSuffix(path, "/health") {
				t.Fatalf("%s %q is answered: %s", method, path, answer)
			}
			var d wire.Decoder
			if _, err := xks.DecodeResponse(&d, xks.Health, answer); err != nil {
				t.Fatal(err)
			}
		default:
			var d wire.Decoder
			if _, _, err := xks.DecodeError(&d, answer); err != nil || w.Code < 400 {
				t.Fatalf("%d %q: %v", w.Code, answer, err)
			}
		}
	})
}

// FuzzExternalBlob gives any blob to a key of an external key store, whose
// manager refuses everything: no blob gets further than that, and ParseBlob agrees
// on whose it is.
func FuzzExternalBlob(f *testing.F) {
	id := engine.KeyID{ID: [16]byte{1}}
	head := engine.AppendHeader(nil, engine.SchemeExternal, id, engine.MaterialID{2})
	f.Add(append(append(bytes.Clone(head), 12, 0), make([]byte, 12+16+40)...))
	f.Add(append(append(bytes.Clone(head), 16, 20), make([]byte, 16+20+16+45)...))
	f.Fuzz(func(t *testing.T, blob []byte) {
		k := engine.NewExternalKey(id, []engine.KeyVersion{{Number: 1, MaterialID: engine.MaterialID{2}}}, 0, nil, nil)
		ops := []engine.Op{{Verb: engine.Decrypt, Alg: engine.AlgSymmetric, In: blob}}
		k.Do(ops)
		h, err := engine.ParseBlob(blob)
		switch {
		case ops[0].Err == engine.ErrPending:
			if err != nil || h.KeyID != id || h.Scheme != engine.SchemeExternal {
				t.Fatalf("a blob of %+v would go to the manager: %v", h, err)
			}
		case !errors.Is(ops[0].Err, engine.ErrInvalidCiphertext):
			t.Fatal(ops[0].Err)
		}
	})
}
