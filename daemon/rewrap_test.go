package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
	"keymill/keystore"
)

// rewrapStore is a stopped daemon's data directory with a key, and a token to move to.
type rewrapStore struct {
	*testing.T
	soft, token Config
	id          keystore.Identity
}

func newRewrapStore(t *testing.T) *rewrapStore {
	t.Helper()
	tok := hsmtest.SoftHSM(t)
	r := &rewrapStore{T: t, soft: freePorts(t)}
	mustBoot(t, r.soft, nil)
	r.token = r.soft
	r.token.HSMModule, r.token.HSMToken, r.token.HSMPINFile = tok.Module, tok.TokenLabel, tok.PINFile
	r.id = keystore.Identity{Account: "000000000000", Region: "us-east-1", Spec: "SYMMETRIC_DEFAULT", ID: keystore.KeyID{1}, Version: 1}
	r.with(r.soft, StoreOptions{}, func(op *Opened) {
		m, err := op.Store.SealMaterial(t.Context(), r.id, []byte("the secret"))
		if err != nil {
			t.Fatal(err)
		}
		txn := op.Store.NewTxn()
		txn.PutKey(&keystore.Key{
			Account: r.id.Account, Region: r.id.Region, ID: r.id.ID, Spec: r.id.Spec, Origin: "AWS_KMS", Manager: keystore.ManagerCustomer,
			Versions: []keystore.Version{{Number: 1}},
		}, 0)
		txn.PutMaterial(m, 0)
		if _, err := txn.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// with opens the store, which must work, and closes it after f.
func (r *rewrapStore) with(cfg Config, o StoreOptions, f func(*Opened)) {
	r.Helper()
	op, err := OpenStore(r.Context(), cfg, o)
	if err != nil {
		r.Fatal(err)
	}
	f(op)
	if err := op.Close(); err != nil {
		r.Error(err)
	}
}

// checkSecret opens the key's material.
func (r *rewrapStore) checkSecret(op *Opened) {
	r.Helper()
	if secret, err := op.Store.OpenMaterial(r.Context(), r.id); err != nil || string(secret) != "the secret" {
		r.Errorf("%q, %v", secret, err)
	}
}

// begin begins a move to the token and stops before anything has moved.
func (r *rewrapStore) begin(op *Opened) {
	r.Helper()
	place := placeOf(r.token)
	r.interrupt(op, RewrapRequest{To: &place})
}

func (r *rewrapStore) interrupt(op *Opened, req RewrapRequest) {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	_, err := op.Rewrap(ctx, req, func(keystore.RewrapProgress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		r.Fatalf("the move was not interrupted: %v", err)
	}
}

// An interrupted move to a token: both configurations start, and the move is finished
// under either.
func TestConfigurationInTheMiddleOfAMove(t *testing.T) {
	for _, configured := range []string{"old root", "new root"} {
		t.Run(configured, func(t *testing.T) {
			r := newRewrapStore(t)
			r.with(r.soft, StoreOptions{}, r.begin)
			cfg := r.soft
			if configured == "new root" {
				cfg = r.token
			}
			log, err := bootOnce(t, cfg, nil, func(s *Server) {
				r.checkSecret(s.service.opened)
				if st, err := RequestRewrapStatus(t.Context(), cfg.Data); err != nil || st.Pending == nil || st.Pending.To != placeOf(r.token) {
					t.Errorf("%+v, %v", st, err)
				}
				res, err := RequestRewrap(t.Context(), cfg.Data, RewrapRequest{}, nil)
				if err != nil || !res.Moved || res.Progress.Moved != 1 || res.From != placeOf(r.soft) || res.To != placeOf(r.token) || res.Retired != 1 {
					t.Errorf("%+v, %v", res, err)
				}
				r.checkSecret(s.service.opened)
				if st, err := RequestRewrapStatus(t.Context(), cfg.Data); err != nil || st.Pending != nil || len(st.Retired) != 1 || st.DomainKey != res.Target {
					t.Errorf("%+v, %v", st, err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(log, "has not finished; run it again") {
				t.Errorf("the log does not say that a move is unfinished:\n%s", log)
			}
			if changed := strings.Contains(log, "change hsm-module"); changed != (configured == "old root") {
				t.Errorf("the log on the configuration:\n%s", log)
			}
			if _, err := bootOnce(t, r.soft, nil, nil); !errors.Is(err, keystore.ErrWrongRoot) || !strings.Contains(err.Error(), "keymill rewrap has moved it") {
				t.Errorf("the old root alone: %v", err)
			}
			if err := os.Remove(filepath.Join(r.soft.Data, rootKeyName)); err != nil {
				t.Fatal(err)
			}
			r.with(r.token, StoreOptions{}, r.checkSecret)
		})
	}
}

// What is needed and cannot be had stops the start, by name; those who need the store
// key alone open the store all the same.
func TestMissingRootInTheMiddleOfAMove(t *testing.T) {
	r := newRewrapStore(t)
	r.with(r.soft, StoreOptions{}, r.begin)
	pin, err := os.ReadFile(r.token.HSMPINFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.token.HSMPINFile); err != nil {
		t.Fatal(err)
	}
	_, err = bootOnce(t, r.soft, nil, nil)
	if err == nil {
		t.Fatal("started without the new root")
	}
	for _, text := range []string{"has not finished", r.token.HSMToken, r.token.HSMPINFile, "--to-hsm-"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error lacks %q: %v", text, err)
		}
	}
	r.with(r.soft, StoreOptions{StoreKeyOnly: true}, func(op *Opened) {
		if err := op.Store.Verify(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})

	// The PIN file is elsewhere now.
	place := placeOf(r.token)
	place.PINFile = filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(place.PINFile, pin, 0o600); err != nil {
		t.Fatal(err)
	}
	r.with(r.soft, StoreOptions{Target: &place}, func(op *Opened) {
		r.interrupt(op, RewrapRequest{To: &place})
	})
	r.with(r.soft, StoreOptions{}, func(op *Opened) { // as recorded
		r.checkSecret(op)
		if res, err := op.Rewrap(t.Context(), RewrapRequest{To: &place}, nil); err != nil || res.To != place {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// A move that has begun is finished or turned round before another one.
func TestAnotherMoveInTheMiddle(t *testing.T) {
	r := newRewrapStore(t)
	r.with(r.soft, StoreOptions{}, func(op *Opened) {
		r.begin(op)
		for name, req := range map[string]RewrapRequest{
			"a rotation":     {Rotate: true},
			"another target": {To: &keystore.Place{Kind: hsm.KindSoftware}},
		} {
			if _, err := op.Rewrap(t.Context(), req, nil); err == nil || !strings.Contains(err.Error(), "--back") {
				t.Errorf("%s: %v", name, err)
			}
		}
		before := op.Store.Header().DomainKey.String()
		r.interrupt(op, RewrapRequest{Back: true})
		res, err := op.Rewrap(t.Context(), RewrapRequest{}, nil)
		if err != nil || res.Target != before || res.To != placeOf(r.soft) {
			t.Errorf("back: %+v, %v", res, err)
		}
		r.checkSecret(op)
		if _, err := op.Rewrap(t.Context(), RewrapRequest{Back: true}, nil); !errors.Is(err, keystore.ErrNoRewrap) {
			t.Errorf("back from nowhere: %v", err)
		}
	})
	r.with(r.soft, StoreOptions{}, r.checkSecret)
}

// What cannot begin leaves the store, its roots and the token as they were.
func TestMoveThatCannotBegin(t *testing.T) {
	r := newRewrapStore(t)
	good := placeOf(r.token)
	r.with(r.soft, StoreOptions{}, func(op *Opened) {
		noToken, noModule := good, good
		noToken.Token, noModule.Module = "missing", "/no/such.so"
		for name, c := range map[string]struct {
			req  RewrapRequest
			want string
		}{
			"no token":     {RewrapRequest{To: &noToken}, `"missing"`},
			"no module":    {RewrapRequest{To: &noModule}, "/no/such.so"},
			"nowhere":      {RewrapRequest{}, "say where"},
			"two targets":  {RewrapRequest{Rotate: true, To: &good}, "one target"},
			"unknown kind": {RewrapRequest{To: &keystore.Place{Kind: "paper"}}, "paper"},
			"where it is":  {RewrapRequest{To: &keystore.Place{Kind: hsm.KindSoftware}}, "--rotate"},
		} {
			if _, err := op.Rewrap(t.Context(), c.req, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := op.Rewrap(ended, RewrapRequest{To: &good}, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
		if len(op.roots) != 1 || op.Root.First() != op.roots[0].root {
			t.Errorf("%d roots are open", len(op.roots))
		}
		if p, err := op.Store.PendingRewrap(); p != nil || err != nil {
			t.Errorf("%+v, %v", p, err)
		}
		r.checkSecret(op)
	})
	report, err := hsm.Inspect(PKCS11Config(r.token, nil))
	if err != nil || len(report.DomainKeys) != 0 {
		t.Errorf("domain keys on the token: %+v, %v", report.DomainKeys, err)
	}
}

// A rotation on the root in use, and the old keys destroyed, of both kinds of root.
func TestRotateAndDestroy(t *testing.T) {
	r := newRewrapStore(t)
	to := placeOf(r.token)
	r.with(r.soft, StoreOptions{}, func(op *Opened) {
		for range 2 {
			if res, err := op.Rewrap(t.Context(), RewrapRequest{Rotate: true}, nil); err != nil || res.From != res.To {
				t.Fatalf("%+v, %v", res, err)
			}
		}
		if res, err := op.Rewrap(t.Context(), RewrapRequest{To: &to}, nil); err != nil || res.Retired != 3 {
			t.Fatalf("%+v, %v", res, err)
		}
	})
	r.with(r.token, StoreOptions{}, func(op *Opened) {
		// Without the key file nothing is destroyed, and nothing forgotten.
		key := filepath.Join(r.soft.Data, rootKeyName)
		if err := os.Rename(key, key+".away"); err != nil {
			t.Fatal(err)
		}
		if _, err := op.Rewrap(t.Context(), RewrapRequest{DestroyOld: true}, nil); !errors.Is(err, hsm.ErrNoKeyFile) {
			t.Errorf("%v", err)
		}
		if st, err := op.RewrapStatus(); err != nil || len(st.Retired) != 3 {
			t.Errorf("%+v, %v", st, err)
		}
		if err := os.Rename(key+".away", key); err != nil {
			t.Fatal(err)
		}
		old := op.Store.Header().DomainKey
		res, err := op.Rewrap(t.Context(), RewrapRequest{Rotate: true, DestroyOld: true}, nil)
		if err != nil || len(res.Destroyed) != 4 || res.Retired != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		for _, d := range res.Destroyed {
			if d.Gone {
				t.Errorf("%s was not there", d.ID)
			}
		}
		if err := op.Root.CheckDomainKey(t.Context(), old); !errors.Is(err, hsm.ErrNoDomainKey) {
			t.Errorf("the old key on the token: %v", err)
		}
		r.checkSecret(op)
		res, err = op.Rewrap(t.Context(), RewrapRequest{DestroyOld: true}, nil)
		if err != nil || res.Moved || len(res.Destroyed) != 0 {
			t.Errorf("with nothing left to destroy: %+v, %v", res, err)
		}
	})
	b, err := os.ReadFile(filepath.Join(r.soft.Data, rootKeyName))
	if err != nil || len(b) > 60 {
		t.Errorf("the key file has %d bytes, %v: keys are left in it", len(b), err)
	}
	report, err := hsm.Inspect(PKCS11Config(r.token, nil))
	if err != nil || len(report.DomainKeys) != 1 {
		t.Errorf("domain keys on the token: %+v, %v", report.DomainKeys, err)
	}
}

// The control socket refuses what it does not understand, and a second move.
func TestRewrapOverTheSocket(t *testing.T) {
	r := newRewrapStore(t)
	_, err := bootOnce(t, r.soft, nil, func(s *Server) {
		post := func(body string) (int, string) {
			t.Helper()
			conn, err := dialUnix(filepath.Join(r.soft.Data, controlName))
			if err != nil {
				t.Fatal(err)
			}
			client := &http.Client{Transport: &http.Transport{
				DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true,
			}}
			res, err := client.Post("http://control/rewrap", "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			return res.StatusCode, string(b)
		}
		for _, bad := range []string{"", "{", `{"rotat":true}`, `[]`, `{"to":{"kind":"software","pin":"1234"}}`, `"` + strings.Repeat("x", maxControlBody) + `"`} {
			if status, answer := post(bad); status != http.StatusBadRequest || !strings.Contains(answer, "couldn't read the request") {
				t.Errorf("%.40q: %d %s", bad, status, answer)
			}
		}
		for body, want := range map[string]string{
			`{}`:                            "say where",
			`{"rotate":true,"back":true}`:   "one target",
			`{"to":{"kind":"paper"}}`:       "paper",
			`{"to":{"kind":"pkcs11"}}`:      "hsm-module",
			`{"to":{"kind":"software"}}`:    "--rotate",
			`{"back":true}`:                 "turn round",
			`{"back":true,"rotate":false} `: "turn round",
		} {
			status, answer := post(body)
			var line rewrapLine
			if err := json.Unmarshal([]byte(answer), &line); err != nil || status != http.StatusOK || !strings.Contains(line.Error, want) {
				t.Errorf("%s: %d %s, want %q", body, status, answer, want)
			}
		}
		s.service.opened.busy <- struct{}{}
		s.service.opened.wait = time.Millisecond
		if _, err := RequestRewrap(t.Context(), r.soft.Data, RewrapRequest{Rotate: true}, nil); err == nil || !strings.Contains(err.Error(), "already") {
			t.Errorf("while another one works: %v", err)
		}
		<-s.service.opened.busy
		var phases []string
		if _, err := RequestRewrap(t.Context(), r.soft.Data, RewrapRequest{Rotate: true}, func(p keystore.RewrapProgress) { phases = append(phases, p.Phase) }); err != nil {
			t.Error(err)
		}
		if len(phases) == 0 {
			t.Error("no progress was told")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := RequestRewrap(t.Context(), r.soft.Data, RewrapRequest{Rotate: true}, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a daemon: %v", err)
	}
}

// A client that reads junk, or an answer that ends early, gets an error and never a result.
func TestRewrapAnswers(t *testing.T) {
	for _, body := range []string{"", "{}\n", `{"progress":{"phase":"moving"}}` + "\n", "junk", `{"result":`} {
		dir := t.TempDir()
		ln, err := listenUnix(filepath.Join(dir, controlName))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, bytes.NewBufferString(body)) })}
		go srv.Serve(ln)
		res, err := RequestRewrap(t.Context(), dir, RewrapRequest{}, nil)
		if err == nil || !strings.Contains(err.Error(), "goes on where it was") {
			t.Errorf("%q: %+v, %v", body, res, err)
		}
		srv.Close()
	}
	if fmt.Sprint(placeOf(Config{})) != "the software root" {
		t.Error(placeOf(Config{}))
	}
}
