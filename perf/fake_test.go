package perf

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/valyala/fasthttp"

	"keymill/daemon/wire"
)

// A fake is a server of the few operations that loads need. Its answers have
// the API's shape and no meaning.
type fake struct {
	target Target
	calls  [256]atomic.Uint64 // by operation
	fail   func(op wire.Op) (status int, body string)

	results string // of batch operations

	mu   sync.Mutex
	seen map[string]int // bodies of requests, guarded by mu
}

func newFake(t *testing.T) *fake {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{seen: make(map[string]int)}
	server := &fasthttp.Server{Handler: f.serve, NoDefaultContentType: true, CloseOnShutdown: true}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(ln)
	}()
	t.Cleanup(func() { server.Shutdown(); <-done })
	f.target = Target{Addr: ln.Addr().String(), Region: "us-east-1", Credentials: Credentials{"AKIAIOSFODNN7EXAMPLE", []byte("secret")}}
	return f
}

func (f *fake) serve(ctx *fasthttp.RequestCtx) {
	op, ok := wire.OpByTarget(ctx.Request.Header.Peek("X-Amz-Target"))
	if !ok || !bytes.HasPrefix(ctx.Request.Header.Peek("Authorization"), []byte("AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/")) {
		ctx.Error(`{"__type":"UnknownOperationException"}`, 400)
		return
	}
	f.calls[op].Add(1)
	f.mu.Lock()
	f.seen[string(ctx.PostBody())]++
	f.mu.Unlock()
	if f.fail != nil {
		if status, body := f.fail(op); status != 0 {
			ctx.Error(body, status)
			return
		}
	}
	var in struct {
		KeyId                              string
		Plaintext, CiphertextBlob, Message []byte
	}
	if err := json.Unmarshal(ctx.PostBody(), &in); err != nil {
		ctx.Error(err.Error(), 400)
		return
	}
	var answer interface{ AppendJSON([]byte) []byte }
	switch op {
	case wire.OpCreateKey:
		answer = &wire.CreateKeyResponse{KeyMetadata: &wire.KeyMetadata{KeyId: "1234abcd-12ab-34cd-56ef-1234567890ab"}}
	case wire.OpGenerateDataKey:
		answer = &wire.GenerateDataKeyResponse{KeyId: in.KeyId, Plaintext: make([]byte, 32), CiphertextBlob: make([]byte, 150)}
	case wire.OpEncrypt:
		answer = &wire.EncryptResponse{KeyId: in.KeyId, CiphertextBlob: append([]byte("sealed:"), in.Plaintext...)}
	case wire.OpDecrypt:
		plain, ok := bytes.CutPrefix(in.CiphertextBlob, []byte("sealed:"))
		if !ok {
			ctx.Error(`{"__type":"InvalidCiphertextException"}`, 400)
			return
		}
		answer = &wire.DecryptResponse{Plaintext: plain}
	case wire.OpSign:
		answer = &wire.SignResponse{KeyId: in.KeyId, Signature: make([]byte, 71)}
	case wire.OpGenerateMac:
		answer = &wire.GenerateMacResponse{KeyId: in.KeyId, Mac: make([]byte, 32)}
	case wire.OpGenerateRandom:
		answer = &wire.GenerateRandomResponse{Plaintext: make([]byte, 32)}
	case wire.OpReEncrypt, wire.OpVerify, wire.OpVerifyMac, wire.OpDeriveSharedSecret, wire.OpGenerateDataKeyPair, wire.OpGetPublicKey,
		wire.OpDescribeKey, wire.OpGenerateDataKeyWithoutPlaintext, wire.OpDisableKey, wire.OpEnableKey:
		answer = &wire.VerifyResponse{KeyId: in.KeyId}
	case wire.OpGenerateDataKeys:
		ctx.SetBody(make([]byte, 200*DefaultShape.Batch))
		return
	case wire.OpBatchEncrypt, wire.OpBatchDecrypt, wire.OpBatchSign, wire.OpBatchVerify:
		ctx.SetBodyString(`{"Results":[` + f.results + `]}`)
		return
	default:
		ctx.SetContentType(contentType)
		ctx.Error(`{"__type":"UnsupportedOperationException"}`, 400)
		return
	}
	ctx.SetContentType(contentType)
	ctx.SetBody(answer.AppendJSON(nil))
}

// serveAsKeymill is a fake with the command line of keymill serve. It is ready
// when asked for the third time.
func serveAsKeymill(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	listen := flags.String("listen", "", "")
	admin := flags.String("admin-listen", "", "")
	data := flags.String("data", "", "")
	region := flags.String("region", "", "")
	quotas := flags.String("quota-profile", "", "")
	extra := flags.String("log-level", "", "")
	if len(args) == 0 || args[0] != "serve" {
		return fmt.Errorf("no serve in %q", args)
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *quotas != "none" || *region != "eu-west-1" || *extra != "warn" {
		return fmt.Errorf("unexpected flags: %q", args)
	}
	if err := os.Mkdir(*data, 0o700); err != nil {
		return err
	}
	const credentials = "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = secret\n"
	if err := os.WriteFile(filepath.Join(*data, "credentials"), []byte(credentials), 0o600); err != nil {
		return err
	}
	var asked atomic.Int32
	go fasthttp.ListenAndServe(*admin, func(ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) != "/readyz" || asked.Add(1) < 3 {
			ctx.SetStatusCode(503)
		}
	})
	f := &fake{seen: make(map[string]int)}
	return fasthttp.ListenAndServe(*listen, f.serve)
}
