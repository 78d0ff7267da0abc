package perf

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// sdkAuthorization is what the AWS SDK's signer makes of the request that raw
// holds, when only the headers that builder signs are there.
func sdkAuthorization(t *testing.T, raw []byte, creds Credentials, region string, now time.Time) (want, got string, body []byte) {
	t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		t.Fatalf("request is not HTTP: %v\n%q", err, raw)
	}
	body, err = io.ReadAll(req.Body)
	if err != nil {
		t.Fatal(err)
	}
	got = req.Header.Get("Authorization")
	date := req.Header.Get("X-Amz-Date")
	req.Header.Del("Authorization")
	req.Header.Del("Content-Length")
	req.ContentLength = -1 // or the SDK signs it
	req.URL.Scheme, req.URL.Host = "http", req.Host
	sum := sha256.Sum256(body)
	err = v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: creds.AccessKeyID, SecretAccessKey: string(creds.Secret)},
		req, hex.EncodeToString(sum[:]), "kms", region, now)
	if err != nil {
		t.Fatal(err)
	}
	if d := req.Header.Get("X-Amz-Date"); d != date {
		t.Fatalf("X-Amz-Date is %s, the SDK's %s", date, d)
	}
	return req.Header.Get("Authorization"), got, body
}

func TestBuilderAgainstSDK(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	letters := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[rnd.IntN(64)]
		}
		return string(b)
	}
	for i := range 50 {
		creds := Credentials{"AKIA" + strings.ToUpper(hex.EncodeToString([]byte(letters(8)))), []byte(letters(1 + rnd.IntN(80)))}
		region := []string{"us-east-1", "eu-central-2", "us-gov-west-1"}[rnd.IntN(3)]
		host := fmt.Sprintf("127.0.0.1:%d", 1024+rnd.IntN(60000))
		b := newBuilder(host, region, "TrentService.Encrypt", creds)
		now := time.Unix(1_700_000_000+rnd.Int64N(1e9), rnd.Int64N(1e9))
		for range 6 { // one builder over seconds, days and back
			body := []byte(letters(rnd.IntN(300)))
			raw := b.append(nil, now, body)
			want, got, sent := sdkAuthorization(t, raw, creds, region, now)
			if got != want {
				t.Fatalf("case %d at %v:\ngot  %s\nwant %s", i, now, got, want)
			}
			if !bytes.Equal(sent, body) {
				t.Fatalf("body sent %q, want %q", sent, body)
			}
			now = now.Add(time.Duration(rnd.Int64N(int64(72*time.Hour))) - 24*time.Hour)
		}
	}
}

func TestBuilderAllocates(t *testing.T) {
	b := newBuilder("127.0.0.1:1", "us-east-1", "TrentService.Encrypt", Credentials{"AKIA", []byte("secret")})
	now, body := time.Now(), []byte(`{"KeyId":"x"}`)
	out := b.append(nil, now, body)
	if n := testing.AllocsPerRun(100, func() { out = b.append(out[:0], now, body) }); n != 0 {
		t.Errorf("%v allocations for a request, want 0", n)
	}
}

func TestCredentialsHideSecret(t *testing.T) {
	target := Target{Addr: "h:1", Region: "r", Credentials: Credentials{"AKIA", []byte("hunter2")}}
	for _, form := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(form, target); strings.Contains(s, "hunter2") || strings.Contains(s, "104") {
			t.Errorf("%s shows the secret: %s", form, s)
		}
	}
}

func BenchmarkBuilder(b *testing.B) {
	bld := newBuilder("127.0.0.1:4599", "us-east-1", "TrentService.GenerateDataKey", Credentials{"AKIAIOSFODNN7EXAMPLE", []byte("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")})
	body := []byte(`{"KeyId":"1234abcd-12ab-34cd-56ef-1234567890ab","KeySpec":"AES_256"}`)
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = bld.append(out[:0], time.Now(), body)
	}
}
