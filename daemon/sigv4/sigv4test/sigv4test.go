// Package sigv4test is Signature Version 4 written the plain way: with strings,
// maps and the standard library's helpers, following AWS's description step by
// step. It signs requests for tests and is the oracle that package sigv4 is
// compared with. It is slow, trusts its input, and must never verify a real
// request.
package sigv4test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"
)

// Header is a header as it is sent: name and value.
type Header [2]string

// Request is a request as it is sent.
type Request struct {
	Method, Path, Query string
	Headers             []Header
	Body                string
}

// Clone returns a copy that shares nothing.
func (r *Request) Clone() *Request {
	c := *r
	c.Headers = slices.Clone(r.Headers)
	return &c
}

// Get returns the first value of a header, named in any case.
func (r *Request) Get(name string) string {
	for _, h := range r.Headers {
		if strings.EqualFold(h[0], name) {
			return h[1]
		}
	}
	return ""
}

// Set replaces the first header of that name, or adds one.
func (r *Request) Set(name, value string) {
	for i, h := range r.Headers {
		if strings.EqualFold(h[0], name) {
			r.Headers[i][1] = value
			return
		}
	}
	r.Headers = append(r.Headers, Header{name, value})
}

// Key is what a client signs with.
type Key struct{ ID, Secret, Region, Service string }

const layout = "20060102T150405Z"

// Sign sets X-Amz-Date and Authorization. Without names it signs every header
// there is.
func (r *Request) Sign(k Key, t time.Time, names ...string) {
	t = t.UTC()
	r.Set("X-Amz-Date", t.Format(layout))
	if len(names) == 0 {
		for _, h := range r.Headers {
			if n := strings.ToLower(h[0]); n != "authorization" && !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
		sort.Strings(names)
	}
	list := strings.Join(names, ";")
	scope := strings.Join([]string{t.Format("20060102"), k.Region, k.Service, "aws4_request"}, "/")
	r.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+k.ID+"/"+scope+", SignedHeaders="+list+
		", Signature="+r.Signature(k, t.Format(layout), scope, list))
}

// Signature computes a signature from its parts, whatever they are.
func (r *Request) Signature(k Key, date, scope, signedHeaders string) string {
	creq := sha256.Sum256([]byte(r.Canonical(signedHeaders)))
	sts := "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hex.EncodeToString(creq[:])
	return hex.EncodeToString(mac(SigningKey(k, strings.SplitN(scope, "/", 2)[0]), sts))
}

// SigningKey derives the key of a day.
func SigningKey(k Key, day string) []byte {
	key := mac([]byte("AWS4"+k.Secret), day)
	key = mac(key, k.Region)
	key = mac(key, k.Service)
	return mac(key, "aws4_request")
}

func mac(key []byte, s string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}

// Canonical returns the canonical request.
func (r *Request) Canonical(signedHeaders string) string {
	headers := ""
	for _, name := range strings.Split(signedHeaders, ";") {
		var values []string
		for _, h := range r.Headers {
			if strings.ToLower(h[0]) == name {
				values = append(values, value(h[1]))
			}
		}
		headers += name + ":" + strings.Join(values, ",") + "\n"
	}
	return strings.Join([]string{r.Method, Path(r.Path), Query(r.Query), headers, signedHeaders,
		fmt.Sprintf("%x", sha256.Sum256([]byte(r.Body)))}, "\n")
}

var (
	folds  = regexp.MustCompile(`[ \t]*[\r\n][ \t\r\n]*`)
	spaces = regexp.MustCompile(` +`)
)

func value(v string) string {
	return spaces.ReplaceAllString(folds.ReplaceAllString(strings.Trim(v, " \t\r\n"), " "), " ")
}

// Path returns the canonical path.
func Path(p string) string {
	var out []string
	for _, seg := range strings.Split(p, "/") {
		switch {
		case seg == "" || seg == ".":
		case seg == ".." && len(out) > 0:
			out = out[:len(out)-1]
		case seg == "..":
		default:
			out = append(out, encode(seg))
		}
	}
	s := "/" + strings.Join(out, "/")
	if len(out) > 0 && strings.HasSuffix(p, "/") {
		s += "/"
	}
	return s
}

// Query returns the canonical query.
func Query(q string) string {
	type pair struct{ name, value string }
	var pairs []pair
	for _, piece := range strings.Split(q, "&") {
		if piece == "" {
			continue
		}
		name, value, _ := strings.Cut(piece, "=")
		pairs = append(pairs, pair{encode(decode(name)), encode(decode(value))})
	}
	sort.Slice(pairs, func(i, j int) bool {
		if pairs[i].name != pairs[j].name {
			return pairs[i].name < pairs[j].name
		}
		return pairs[i].value < pairs[j].value
	})
	out := make([]string, len(pairs))
	for i, p := range pairs {
		out[i] = p.name + "=" + p.value
	}
	return strings.Join(out, "&")
}

var escape = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

func decode(s string) string {
	return escape.ReplaceAllStringFunc(s, func(e string) string {
		b, err := hex.DecodeString(e[1:])
		if err != nil {
			panic(err)
		}
		return string(b)
	})
}

func encode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
