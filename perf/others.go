package perf

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"keymill/engine"
)

// Servers with an API of their own. What they are asked is what their
// documentation describes for the purpose of our operation; what they lack is
// refused by name.

// A caller makes calls whose method and path say what is asked, with a JSON
// body.
type caller struct {
	client *Client
	header string // further header lines, each with its end
	method string
}

// request is the head of requests to path, up to the Content-Length's value.
func (c *caller) request(path string) []byte {
	return []byte(c.method + " " + path + " HTTP/1.1\r\nHost: " + c.client.target.Addr +
		"\r\nContent-Type: application/json\r\n" + c.header + "Content-Length: ")
}

// withBody appends head and body.
func withBody(dst, head, body []byte) []byte {
	dst = append(dst, head...)
	dst = strconv.AppendInt(dst, int64(len(body)), 10)
	dst = append(dst, "\r\n\r\n"...)
	return append(dst, body...)
}

// call makes one call; out may be nil.
func (c *caller) call(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := c.client.send(ctx, withBody(nil, c.request(path), body))
	if err == nil && out != nil {
		err = json.Unmarshal(answer, out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.method, path, err)
	}
	return nil
}

// keyName is a name that no key has yet.
func keyName() string {
	var b [8]byte
	rand.Read(b[:])
	return "bench-" + hex.EncodeToString(b[:])
}

// A target of requests: a key's path and a body, or what makes the bodies.
type callTo struct {
	head []byte
	body []byte
	fill func() func(dst []byte) []byte // instead of body; called for each connection
}

// workload is the requests of a mix over calls, of which part i has calls[i] in
// turn.
func (m *Mix) workload(s Shape, calls [][]callTo) *Workload {
	w := newWorkload(*m, s)
	o := newOrder(w.Parts, m.InTurn)
	w.Requests = func(i int) Request {
		next := make([]func([]byte, time.Time) []byte, len(calls))
		for j, all := range calls {
			n := 7 * i
			fills := make([]func([]byte) []byte, len(all))
			for k := range all {
				if all[k].fill != nil {
					fills[k] = all[k].fill()
				}
			}
			var body []byte
			next[j] = func(dst []byte, _ time.Time) []byte {
				n++
				k := n % len(all)
				if fills[k] == nil {
					return withBody(dst, all[k].head, all[k].body)
				}
				body = fills[k](body[:0])
				return withBody(dst, all[k].head, body)
			}
		}
		return mixed(o, m.place(i), next)
	}
	return w
}

// varying makes bodies of before, a Base64 text that is never the same, and
// after.
func varying(before string, size int, after string) func() func([]byte) []byte {
	return func() func([]byte) []byte {
		v := newVaried(size)
		return func(dst []byte) []byte {
			dst = append(dst, before...)
			dst = base64.StdEncoding.AppendEncode(dst, v.next())
			return append(dst, after...)
		}
	}
}

// Transit is the transit engine of OpenBao and Vault.
type Transit struct {
	Mount string // where it is mounted, "transit" unless somebody moved it
	Token []byte
}

// Name implements [API].
func (Transit) Name() string { return "transit" }

// transitTypes are the key types of transit for our specs.
var transitTypes = map[engine.Spec]string{
	engine.SymmetricDefault: "aes256-gcm96",
	engine.P256:             "ecdsa-p256",
	engine.P384:             "ecdsa-p384",
	engine.P521:             "ecdsa-p521",
	engine.Ed25519:          "ed25519",
	engine.RSA2048:          "rsa-2048",
	engine.RSA3072:          "rsa-3072",
	engine.RSA4096:          "rsa-4096",
}

var errOtherServer = errors.New("this kind of server is not asked for that here")

// Prepare implements [API].
func (a Transit) Prepare(ctx context.Context, t Target, m Mix, s Shape, _ int) (*Workload, error) {
	client, err := Dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	c := &caller{client: client, method: http.MethodPost, header: "X-Vault-Token: " + string(a.Token) + "\r\n"}
	base := "/v1/" + a.Mount
	keys := make(map[engine.Spec][]string)
	calls := make([][]callTo, len(m.Parts))
	for i, p := range m.Parts {
		o := p.Operation
		kind, ok := transitTypes[o.Spec]
		if !ok {
			return nil, fmt.Errorf("%v: %w", o, errOtherServer)
		}
		if keys[o.Spec] == nil {
			for range s.Keys {
				name := keyName()
				if err := c.call(ctx, base+"/keys/"+name, map[string]string{"type": kind}, nil); err != nil {
					return nil, err
				}
				keys[o.Spec] = append(keys[o.Spec], name)
			}
		}
		if calls[i], err = a.calls(ctx, c, base, o, s, keys[o.Spec]); err != nil {
			return nil, err
		}
	}
	w := m.workload(s, calls)
	return w, probe(ctx, client, w)
}

func (a Transit) calls(ctx context.Context, c *caller, base string, o Operation, s Shape, names []string) (calls []callTo, err error) {
	for _, name := range names {
		encrypt := callTo{head: c.request(base + "/encrypt/" + name), fill: varying(`{"plaintext":"`, s.Payload, `"}`)}
		switch {
		case o.Name() == "GenerateDataKey":
			calls = append(calls, callTo{head: c.request(base + "/datakey/plaintext/" + name), body: []byte(`{"bits":256}`)})
		case o.Name() == "GenerateDataKeyWithoutPlaintext":
			calls = append(calls, callTo{head: c.request(base + "/datakey/wrapped/" + name), body: []byte(`{"bits":256}`)})
		case o.Name() == "Encrypt" && o.Spec.Symmetric():
			calls = append(calls, encrypt)
		case o.Name() == "Decrypt" && o.Spec.Symmetric():
			plain := newVaried(s.Payload)
			for range (prepared + len(names) - 1) / len(names) {
				var out struct{ Data struct{ Ciphertext string } }
				if err := c.call(ctx, base+"/encrypt/"+name, map[string][]byte{"plaintext": plain.next()}, &out); err != nil {
					return nil, err
				}
				body, err := json.Marshal(map[string]string{"ciphertext": out.Data.Ciphertext})
				if err != nil {
					return nil, err
				}
				calls = append(calls, callTo{head: c.request(base + "/decrypt/" + name), body: body})
			}
		case o.Name() == "Sign":
			size, form := messageOf(o.Alg)
			path, after := base+"/sign/"+name, `"}`
			if form == engine.Digest {
				// The hash is named, and not made by the server.
				path += map[int]string{32: "/sha2-256", 48: "/sha2-384", 64: "/sha2-512"}[size]
				after = `","prehashed":true}`
			}
			if o.Spec.RSA() {
				scheme := map[bool]string{true: "pkcs1v15", false: "pss"}[o.Alg >= engine.AlgPKCS1SHA256]
				after = `","prehashed":true,"signature_algorithm":"` + scheme + `"}`
			}
			calls = append(calls, callTo{head: c.request(path), fill: varying(`{"input":"`, size, after)})
		default:
			return nil, fmt.Errorf("%v: %w", o, errOtherServer)
		}
	}
	return calls, nil
}

// KES is MinIO's key encryption server. Clients show a certificate, which is in
// the target's TLS configuration.
type KES struct{}

// Name implements [API].
func (KES) Name() string { return "kes" }

// Prepare implements [API].
func (KES) Prepare(ctx context.Context, t Target, m Mix, s Shape, _ int) (*Workload, error) {
	client, err := Dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	c := &caller{client: client, method: http.MethodPut}
	var names []string
	for range s.Keys {
		name := keyName()
		err := c.call(ctx, "/v1/key/create/"+name, struct{}{}, nil)
		var answer *AnswerError
		if errors.As(err, &answer) && answer.Status == http.StatusMethodNotAllowed && c.method == http.MethodPut {
			c.method = http.MethodPost // of releases before 2024
			err = c.call(ctx, "/v1/key/create/"+name, struct{}{}, nil)
		}
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	calls := make([][]callTo, len(m.Parts))
	for i, p := range m.Parts {
		if !p.Operation.Spec.Symmetric() {
			return nil, fmt.Errorf("%v: %w", p.Operation, errOtherServer)
		}
		for _, name := range names {
			switch p.Operation.Name() {
			case "GenerateDataKey":
				calls[i] = append(calls[i], callTo{head: c.request("/v1/key/generate/" + name), body: []byte("{}")})
			case "Encrypt":
				calls[i] = append(calls[i], callTo{head: c.request("/v1/key/encrypt/" + name), fill: varying(`{"plaintext":"`, s.Payload, `"}`)})
			case "Decrypt":
				for range (prepared + len(names) - 1) / len(names) {
					var out struct{ Ciphertext []byte }
					if err := c.call(ctx, "/v1/key/generate/"+name, struct{}{}, &out); err != nil {
						return nil, err
					}
					body, err := json.Marshal(map[string][]byte{"ciphertext": out.Ciphertext})
					if err != nil {
						return nil, err
					}
					calls[i] = append(calls[i], callTo{head: c.request("/v1/key/decrypt/" + name), body: body})
				}
			default:
				return nil, fmt.Errorf("%v: %w", p.Operation, errOtherServer)
			}
		}
	}
	w := m.workload(s, calls)
	return w, probe(ctx, client, w)
}
