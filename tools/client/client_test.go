package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"keymill/tools/client"
	"keymill/tools/e2e"
)

// daemon is a keymill process for all tests; sdk and config reach it.
var (
	daemon *e2e.Daemon
	config aws.Config
	sdk    *kms.Client
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "keymill-client-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	binary, err := e2e.Build(dir)
	if err != nil {
		return fail(err)
	}
	if daemon, err = e2e.Start(ctx, e2e.Options{Binary: binary, Dir: filepath.Join(dir, "data")}); err != nil {
		return fail(err)
	}
	if config, err = daemon.Config(ctx, "us-east-1"); err != nil {
		return fail(err)
	}
	sdk = kms.NewFromConfig(config)
	code := m.Run()
	if err := daemon.Stop(); err != nil {
		return fail(err)
	}
	return code
}

func newKey(t testing.TB, in *kms.CreateKeyInput) *string {
	t.Helper()
	out, err := sdk.CreateKey(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out.KeyMetadata.Arn
}

// both runs a test with each form of the answer.
func both(t *testing.T, f func(t *testing.T, c *client.Client)) {
	for _, json := range []bool{false, true} {
		t.Run(fmt.Sprintf("json=%v", json), func(t *testing.T) {
			f(t, client.NewFromConfig(config, func(o *client.Options) { o.JSON = json }))
		})
	}
}

func TestGenerateDataKeys(t *testing.T) {
	id := newKey(t, &kms.CreateKeyInput{})
	both(t, func(t *testing.T, c *client.Client) {
		ctx := t.Context()
		contexts := []map[string]string{{"object": "1"}, nil, {"object": "3", "é": "\"\\"}}
		out, err := c.GenerateDataKeys(ctx, &client.GenerateDataKeysInput{KeyId: id, KeySpec: types.DataKeySpecAes256, EncryptionContexts: contexts})
		if err != nil {
			t.Fatal(err)
		}
		if *out.KeyId != *id || len(*out.KeyMaterialId) != 64 || len(out.DataKeys) != 3 {
			t.Errorf("%+v", out)
		}
		for i, k := range out.DataKeys {
			got, err := sdk.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: k.CiphertextBlob, EncryptionContext: contexts[i]})
			if err != nil || !bytes.Equal(got.Plaintext, k.Plaintext) || len(k.Plaintext) != 32 {
				t.Errorf("data key %d: %v", i, err)
			}
		}
		out.Wipe()
		if len(bytes.Trim(out.DataKeys[0].Plaintext, "\x00")) > 0 {
			t.Error("Wipe left a data key")
		}
		many, err := c.GenerateDataKeys(ctx, &client.GenerateDataKeysInput{KeyId: id, NumberOfBytes: aws.Int32(24), NumberOfKeys: client.MaxItems, WithoutPlaintext: true})
		if err != nil || len(many.DataKeys) != client.MaxItems || many.DataKeys[77].Plaintext != nil {
			t.Fatalf("%v", err)
		}
		got, err := sdk.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: many.DataKeys[client.MaxItems-1].CiphertextBlob})
		if err != nil || len(got.Plaintext) != 24 {
			t.Errorf("%v", err)
		}
	})
}

func TestBatches(t *testing.T) {
	id := newKey(t, &kms.CreateKeyInput{})
	rsa := newKey(t, &kms.CreateKeyInput{KeySpec: types.KeySpecRsa2048, KeyUsage: types.KeyUsageTypeEncryptDecrypt})
	signing := newKey(t, &kms.CreateKeyInput{KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify})
	both(t, func(t *testing.T, c *client.Client) {
		ctx := t.Context()
		common := map[string]string{"a": "b"}
		enc, err := c.BatchEncrypt(ctx, &client.BatchEncryptInput{KeyId: id, EncryptionContext: common, Items: []client.EncryptItem{
			{Plaintext: []byte("one")}, {}, {Plaintext: []byte("two"), EncryptionContext: map[string]string{}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		code := func(err error) string {
			var e *client.ItemError
			if errors.As(err, &e) {
				return e.Code
			}
			return ""
		}
		if enc.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" || *enc.KeyId != *id || code(enc.Results[1].Err) != "ValidationException" {
			t.Errorf("%+v", enc)
		}
		dec, err := c.BatchDecrypt(ctx, &client.BatchDecryptInput{EncryptionContext: common, Items: []client.DecryptItem{
			{CiphertextBlob: enc.Results[0].CiphertextBlob}, {CiphertextBlob: enc.Results[2].CiphertextBlob},
			{CiphertextBlob: enc.Results[2].CiphertextBlob, EncryptionContext: map[string]string{}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		var texts, codes []string
		for _, r := range dec.Results {
			texts, codes = append(texts, string(r.Plaintext)), append(codes, code(r.Err))
		}
		if diff := cmp.Diff([]string{"one", "", "two"}, texts) + cmp.Diff([]string{"", "InvalidCiphertextException", ""}, codes); diff != "" {
			t.Error(diff)
		}
		if dec.Results[2].KeyId != *id || len(dec.Results[2].KeyMaterialId) != 64 {
			t.Errorf("%+v", dec.Results[2])
		}
		dec.Wipe()

		const oaep = types.EncryptionAlgorithmSpecRsaesOaepSha256
		enc, err = c.BatchEncrypt(ctx, &client.BatchEncryptInput{KeyId: rsa, EncryptionAlgorithm: oaep, Items: []client.EncryptItem{{Plaintext: []byte("rsa")}}})
		if err != nil {
			t.Fatal(err)
		}
		dec, err = c.BatchDecrypt(ctx, &client.BatchDecryptInput{KeyId: rsa, EncryptionAlgorithm: oaep, Items: []client.DecryptItem{{CiphertextBlob: enc.Results[0].CiphertextBlob}}})
		if err != nil || string(dec.Results[0].Plaintext) != "rsa" || dec.Results[0].KeyId != *rsa {
			t.Fatalf("%v %+v", err, dec)
		}

		const alg = types.SigningAlgorithmSpecEcdsaSha256
		sig, err := c.BatchSign(ctx, &client.BatchSignInput{KeyId: signing, SigningAlgorithm: alg, Messages: [][]byte{[]byte("m"), nil}})
		if err != nil || code(sig.Results[1].Err) != "ValidationException" || sig.SigningAlgorithm != alg {
			t.Fatalf("%v %+v", err, sig)
		}
		if _, err := sdk.Verify(ctx, &kms.VerifyInput{KeyId: signing, SigningAlgorithm: alg, Message: []byte("m"), Signature: sig.Results[0].Signature}); err != nil {
			t.Error(err)
		}
		ver, err := c.BatchVerify(ctx, &client.BatchVerifyInput{KeyId: signing, SigningAlgorithm: alg, Items: []client.VerifyItem{
			{Message: []byte("m"), Signature: sig.Results[0].Signature}, {Message: []byte("n"), Signature: sig.Results[0].Signature},
		}})
		if err != nil || !ver.Results[0].SignatureValid || ver.Results[1].SignatureValid || code(ver.Results[1].Err) != "KMSInvalidSignatureException" {
			t.Errorf("%v %+v", err, ver)
		}
	})
}

// TestErrors holds that what concerns the whole request is an error of the SDK's
// kind.
func TestErrors(t *testing.T) {
	id := newKey(t, &kms.CreateKeyInput{})
	ctx := t.Context()
	c := client.NewFromConfig(config)
	for _, k := range []struct {
		in   *client.GenerateDataKeysInput
		want string
	}{
		{&client.GenerateDataKeysInput{KeyId: aws.String("alias/none"), NumberOfKeys: 1, KeySpec: "AES_256"}, "NotFoundException"},
		{&client.GenerateDataKeysInput{KeyId: id, NumberOfKeys: client.MaxItems + 1, KeySpec: "AES_256"}, "ValidationException"},
		{&client.GenerateDataKeysInput{KeyId: id, NumberOfKeys: 1, KeySpec: "AES_256", DryRun: aws.Bool(true)}, "DryRunOperationException"},
	} {
		out, err := c.GenerateDataKeys(ctx, k.in)
		var e smithy.APIError
		if !errors.As(err, &e) || e.ErrorCode() != k.want || out != nil {
			t.Errorf("%v, want %s", err, k.want)
		}
		var own *client.APIError
		if !errors.As(err, &own) || own.Status != 400 || len(own.RequestID) != 36 {
			t.Errorf("%#v", own)
		}
	}
	for _, o := range []client.Options{
		{}, {Endpoint: "http://127.0.0.1:1"}, {Endpoint: "http://127.0.0.1:1", Region: "us-east-1"},
	} {
		if _, err := client.New(o).GenerateDataKeys(ctx, &client.GenerateDataKeysInput{}); err == nil || !strings.Contains(err.Error(), "in the options") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	// A body over the bound is not even sent.
	items := slices.Repeat([]client.EncryptItem{{Plaintext: make([]byte, 4096)}}, 2000)
	if _, err := c.BatchEncrypt(ctx, &client.BatchEncryptInput{KeyId: id, Items: items}); err == nil || !strings.Contains(err.Error(), "send fewer items") {
		t.Errorf("%v", err)
	}
	// One that needs the larger bound arrives.
	out, err := c.BatchEncrypt(ctx, &client.BatchEncryptInput{KeyId: id, Items: items[:1400]})
	if err != nil || len(out.Results) != 1400 || out.Results[1399].Err != nil {
		t.Errorf("7.7 MB: %v", err)
	}
}

// scripted is a server that gives each request the next of its answers.
func scripted(t *testing.T, answers ...func(http.ResponseWriter)) (*client.Client, *atomic.Int32) {
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		answers[min(int(n.Add(1))-1, len(answers)-1)](w)
	}))
	t.Cleanup(s.Close)
	return client.New(client.Options{
		Endpoint: s.URL, Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("AKIAIOSFODNN7EXAMPLE", "not-a-secret", ""),
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		}),
	}), &n
}

// TestRetries holds what is tried again: throttling, the server's faults, broken
// connections; and what is not.
func TestRetries(t *testing.T) {
	text := func(status int, kind, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	const js = "application/x-amz-json-1.1"
	good := text(200, js, `{"KeyId":"k","DataKeys":[{"CiphertextBlob":"QQ=="}]}`)
	throttled := text(400, js, `{"__type":"ThrottlingException","message":"Rate exceeded"}`)
	failing := text(500, js, `{"__type":"KMSInternalException","message":"x"}`)
	broken := func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	cut := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "KMBK")
		panic(http.ErrAbortHandler)
	}
	for _, c := range []struct {
		name    string
		answers []func(http.ResponseWriter)
		tries   int32
		want    string // of the error; "" is success
	}{
		{"good", []func(http.ResponseWriter){good}, 1, ""},
		{"throttled", []func(http.ResponseWriter){throttled, throttled, good}, 3, ""},
		{"throttled for too long", []func(http.ResponseWriter){throttled}, 3, "ThrottlingException"},
		{"failing", []func(http.ResponseWriter){failing, good}, 2, ""},
		{"gateway", []func(http.ResponseWriter){text(503, "text/html", "<html>"), good}, 2, ""},
		{"broken", []func(http.ResponseWriter){broken, good}, 2, ""},
		{"answer cut off", []func(http.ResponseWriter){cut, good}, 2, ""},
		{"refused", []func(http.ResponseWriter){text(400, js, `{"__type":"ValidationException","message":"m"}`), good}, 1, "ValidationException: m"},
		{"no such thing", []func(http.ResponseWriter){text(404, "text/html", "<html>"), good}, 1, "UnknownError: Not Found"},
		{"not JSON", []func(http.ResponseWriter){text(200, js, "{"), good}, 1, "couldn't read the answer"},
		{"too few", []func(http.ResponseWriter){text(200, js, `{"DataKeys":[]}`), good}, 1, "0 results for 1 items"},
		{"not binary", []func(http.ResponseWriter){text(200, "application/x-keymill-bulk", "KMBX"), good}, 1, "malformed"},
		{"another operation's", []func(http.ResponseWriter){text(200, "application/x-keymill-bulk", "KMBK\x01\x05\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"), good}, 1, "malformed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, n := scripted(t, c.answers...)
			_, err := cl.GenerateDataKeys(t.Context(), &client.GenerateDataKeysInput{KeyId: aws.String("k"), NumberOfKeys: 1, KeySpec: "AES_256"})
			if n.Load() != c.tries {
				t.Errorf("%d tries, want %d", n.Load(), c.tries)
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cl, n := scripted(t, func(http.ResponseWriter) { cancel(); panic(http.ErrAbortHandler) })
		if _, err := cl.GenerateDataKeys(ctx, &client.GenerateDataKeysInput{NumberOfKeys: 1}); err == nil || n.Load() != 1 {
			t.Errorf("%v after %d tries", err, n.Load())
		}
	})
}
