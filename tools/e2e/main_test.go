package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
)

// binary is the keymill under test, built by TestMain unless
// KEYMILL_TEST_BINARY names one.
var binary string

// shared is the daemon of the tests that need none of their own: software root,
// every region served.
var shared *Daemon

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "keymill-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary = os.Getenv("KEYMILL_TEST_BINARY"); binary == "" {
		if binary, err = Build(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if coverage, err = NewCoverage("../../daemon/wire/model/kms-2014-11-01.json"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared, err = Start(context.Background(), Options{Binary: binary, Dir: dir + "/data", Regions: "all", Coverage: coverage})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := shared.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: the shared daemon:", err)
		code = 1
	}
	if code == 0 && wholeRun() {
		code = reportCoverage()
	}
	if log := shared.Log(); strings.Contains(log, "panic") || strings.Contains(log, "level=ERROR") {
		fmt.Fprintf(os.Stderr, "FAIL: the shared daemon logged errors:\n%s\n", log)
		code = 1
	}
	return code
}

// start runs a daemon of the test's own. It is stopped when the test ends, and
// fails the test when it does not stop as it should.
func start(t *testing.T, o Options) *Daemon {
	t.Helper()
	if o.Binary == "" {
		o.Binary = binary
	}
	o.Coverage = coverage
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "data")
	}
	d, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-d.done: // the test stopped it
		default:
			if err := d.Stop(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("the daemon printed:\n%s", d.Log())
		}
	})
	return d
}

// token returns a fresh SoftHSM2 token or skips the test.
func token(t *testing.T) *Token {
	t.Helper()
	tok, err := NewToken(t.TempDir())
	if errors.Is(err, ErrNoSoftHSM) {
		skip(t, "softhsm", err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// skip skips the test because a client or device is absent, or fails it when the
// environment says that this one must be there.
func skip(t *testing.T, what, why string) {
	t.Helper()
	for _, required := range strings.Split(os.Getenv("KEYMILL_TEST_REQUIRE"), ",") {
		if required = strings.TrimSpace(required); required == what || required == "all" {
			t.Fatalf("KEYMILL_TEST_REQUIRE names %s: %s", what, why)
		}
	}
	t.Skip(why)
}

// regions hands out region names, one to each story.
var regions struct {
	sync.Mutex
	n int
}

// A story is one test's view of a daemon: a region of its own, a client for it,
// and the plain words most tests need. Its methods fail the test at once.
type story struct {
	*testing.T
	*kms.Client
	d      *Daemon
	region string
}

// newStory returns a story in an unused region of the shared daemon.
func newStory(t *testing.T) *story {
	t.Helper()
	regions.Lock()
	regions.n++
	region := fmt.Sprintf("e-test-%d", regions.n)
	regions.Unlock()
	return storyIn(t, shared, region)
}

func storyIn(t *testing.T, d *Daemon, region string) *story {
	t.Helper()
	c, err := d.Client(t.Context(), region)
	if err != nil {
		t.Fatal(err)
	}
	return &story{t, c, d, region}
}

// in returns the story as a subtest sees it.
func (s *story) in(t *testing.T) *story { return &story{t, s.Client, s.d, s.region} }

func (s *story) ctx() context.Context { return s.Context() }

func (s *story) keyARN(id string) string {
	return "arn:aws:kms:" + s.region + ":" + Account + ":key/" + id
}

func (s *story) aliasARN(name string) string {
	return "arn:aws:kms:" + s.region + ":" + Account + ":" + name
}

// newKey makes a key. No spec is a symmetric key; no usage is the spec's first.
func (s *story) newKey(spec types.KeySpec, usage types.KeyUsageType) *types.KeyMetadata {
	s.Helper()
	out, err := s.CreateKey(s.ctx(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage})
	if err != nil {
		s.Fatalf("CreateKey %s %s: %v", spec, usage, err)
	}
	return out.KeyMetadata
}

// symmetricKey makes a symmetric key and returns its id.
func (s *story) symmetricKey() string { s.Helper(); return *s.newKey("", "").KeyId }

func (s *story) describe(id string) *types.KeyMetadata {
	s.Helper()
	return must(s.DescribeKey(s.ctx(), &kms.DescribeKeyInput{KeyId: &id}))(s).KeyMetadata
}

// must takes a call's results and then the test, so that it reads
// must(call())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// An apiError is what a client is told when the daemon refuses.
type apiError struct {
	Code, Text string
	Status     int
}

// apiErrorOf returns what err, an SDK's error, says; the zero value for nil or
// for an error that is not the daemon's answer.
func apiErrorOf(err error) apiError {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return apiError{}
	}
	e := apiError{Code: api.ErrorCode(), Text: api.ErrorMessage()}
	if e.Text == "UnknownError" { // the SDK's word for none
		e.Text = ""
	}
	var res *awshttp.ResponseError
	if errors.As(err, &res) {
		e.Status = res.HTTPStatusCode()
	}
	return e
}

// wantError fails the test unless err is the refusal code with exactly text and
// status 400. A text that ends in "..." is a beginning.
func wantError(t testing.TB, err error, code, text string) {
	t.Helper()
	if err == nil {
		t.Errorf("succeeded, want %s: %s", code, text)
		return
	}
	got := apiErrorOf(err)
	want := apiError{code, text, http.StatusBadRequest}
	if start, ok := strings.CutSuffix(text, "..."); ok && strings.HasPrefix(got.Text, start) {
		want.Text = got.Text
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v\n(%v)", got, want, err)
	}
}

func ptr[T any](v T) *T { return &v }
