package sigv4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"strings"
	"sync"
	"time"

	"keymill/daemon/wire"
)

// Header is one header of a request: its name in any case, its value without the
// line's end.
type Header struct{ Name, Value []byte }

// Request is what a signature covers, as it was sent. The Verifier keeps none of
// its memory.
type Request struct {
	Method  []byte
	Path    []byte   // raw, before any decoding; empty is "/"
	Query   []byte   // raw, without the question mark
	Headers []Header // all of them, in order of appearance, Host and Authorization too
	Body    []byte
	ID      string // names the request in the log

	// Now is the Verifier's clock, when the caller has read it for the request
	// already; the zero time is for the Verifier to read.
	Now time.Time

	// MayWait is called before anything that may wait, which is Options.Lookup when
	// there is Options.Cached; nil is not called.
	MayWait func()
}

// Credential is one access key and whose it is. Immutable.
type Credential struct {
	AccessKeyID  string
	Account      string
	PrincipalARN string
	PrincipalID  string
	Secret       []byte
	Active       bool
	// Revision differs between credentials that had the same AccessKeyID at
	// different times. A signing key derived for one is never used for another.
	Revision uint64
}

// Lookup finds the credential of an access key id, or returns nil. It is called
// once for every request that is well formed and must not keep the slice.
type Lookup func(accessKeyID []byte) *Credential

// DefaultCacheSize bounds the signing keys kept, some 200 bytes each: a day's
// change for two thousand access keys in one region.
const DefaultCacheSize = 4096

// Options configure a Verifier.
type Options struct {
	// Service is the service name in the credential scope. Empty: "kms".
	Service string
	// NoTarget says that the service's requests have no X-Amz-Target, as those
	// of the XKS proxy protocol. When one is sent, it need not be signed.
	NoTarget bool
	// Lookup finds credentials. Required.
	Lookup Lookup
	// Cached finds those that are in memory, and is asked first; Lookup may wait
	// then. Nil: there is only Lookup, which does not.
	Cached Lookup
	// Region maps the region of a credential scope to a lasting string, and
	// reports whether it is served. It must not keep the slice. Required.
	Region func(region []byte) (string, bool)
	// Served is named in the refusal of a region that is not served.
	Served []string
	// Clock is the time. Nil: time.Now.
	Clock func() time.Time
	// CacheSize bounds the signing keys kept, rounded up to eight times a power of
	// two. 0: DefaultCacheSize.
	CacheSize int
	// Logger gets refused requests at debug level. Nil: nobody.
	Logger *slog.Logger
}

// A Verifier verifies the signatures of requests. Safe for concurrent use.
type Verifier struct {
	service   string
	noTarget  bool
	lookup    Lookup
	cached    Lookup // or nil
	region    func([]byte) (string, bool)
	badRegion string
	clock     func() time.Time
	logger    *slog.Logger
	keys      *keyCache
	scratches sync.Pool // of *scratch; each is wiped of keys before it returns
}

// New makes a Verifier. It panics without Lookup or Region: neither has a
// sensible default.
func New(o Options) *Verifier {
	if o.Lookup == nil || o.Region == nil {
		panic("sigv4: Options.Lookup and Options.Region are required")
	}
	v := &Verifier{service: o.Service, noTarget: o.NoTarget, lookup: o.Lookup, cached: o.Cached, region: o.Region, clock: o.Clock, logger: o.Logger}
	if v.service == "" {
		v.service = "kms"
	}
	v.badRegion = "Credential should be scoped to a valid region."
	if len(o.Served) > 0 {
		v.badRegion += " This endpoint serves: " + strings.Join(o.Served, ", ") + "."
	}
	if v.clock == nil {
		v.clock = time.Now
	}
	if v.logger == nil {
		v.logger = slog.New(slog.DiscardHandler)
	}
	size := o.CacheSize
	if size <= 0 {
		size = DefaultCacheSize
	}
	v.keys = newKeyCache(size)
	v.scratches.New = func() any { return new(scratch) }
	return v
}

// Result is what a verified request says about its caller.
type Result struct {
	Credential *Credential
	Region     string // as Options.Region returned it
}

// Verify checks a request's signature. On success it fills res and returns nil,
// without allocating once the signing key is cached. On failure *res is zero and
// the error is AWS's, ready to answer with.
func (v *Verifier) Verify(r *Request, res *Result) *wire.Error {
	*res = Result{}
	s := v.scratches.Get().(*scratch)
	err := v.verify(s, r, res)
	if err != nil {
		*res = Result{}
		v.log(s, r, err)
	}
	s.reset()
	v.scratches.Put(s)
	return err
}

// Purge wipes the signing keys of an access key. Call it after Lookup has ceased
// to return the credential: then no request that starts later is verified with
// it, and none that started earlier leaves a signing key behind.
func (v *Verifier) Purge(accessKeyID string) { v.keys.purge(accessKeyID) }

// PurgeAll wipes all signing keys, for shutdown.
func (v *Verifier) PurgeAll() { v.keys.purgeAll() }

// CachedKeys returns the number of signing keys kept.
func (v *Verifier) CachedKeys() int { return v.keys.len() }

// scratch is the working memory of one verification.
type scratch struct {
	auth    authorization
	found   found
	signed  [maxSigned]signedHeader
	nsigned int

	canonical     []byte
	canonicalHash [32]byte
	hashed        bool // canonicalHash is set
	query         []byte
	params        []param

	mac hmacBuffer
	key keyWords
}

// maxKept bounds the buffers that go back into the pool.
const maxKept = 32 << 10

func (s *scratch) reset() {
	s.auth, s.found = authorization{}, found{}
	s.nsigned, s.hashed = 0, false
	s.mac.wipe()
	clear(s.key[:])
	if cap(s.canonical) > maxKept {
		s.canonical = nil
	}
	if cap(s.query) > maxKept {
		s.query = nil
	}
	if cap(s.params) > maxKept/16 {
		s.params = nil
	}
}

// found is where the headers that matter are, and how often.
type found struct {
	authorization, date, contentHash  []byte
	authorizations, dates, hashes     int
	hosts, targets, tokens            int
	signsHost, signsDate, signsTarget bool
	signsToken                        bool
}

var (
	nameHost          = []byte("host")
	nameDate          = []byte("x-amz-date")
	nameTarget        = []byte("x-amz-target")
	nameAuthorization = []byte("authorization")
	nameToken         = []byte("x-amz-security-token")
	nameContentHash   = []byte("x-amz-content-sha256")
)

func (f *found) scan(headers []Header) {
	for i := range headers {
		h := &headers[i]
		switch len(h.Name) {
		case len(nameHost):
			if sameName(h.Name, nameHost) {
				f.hosts++
			}
		case len(nameDate):
			if sameName(h.Name, nameDate) {
				f.dates++
				f.date = trimSpace(h.Value)
			}
		case len(nameTarget):
			if sameName(h.Name, nameTarget) {
				f.targets++
			}
		case len(nameAuthorization):
			if sameName(h.Name, nameAuthorization) {
				f.authorizations++
				f.authorization = h.Value
			}
		case len(nameToken): // and nameContentHash
			if sameName(h.Name, nameToken) {
				f.tokens++
			} else if sameName(h.Name, nameContentHash) {
				f.hashes++
				f.contentHash = trimSpace(h.Value)
			}
		}
	}
}

// find finds a request's credential, nil for none.
func (v *Verifier) find(accessKeyID []byte, r *Request) *Credential {
	if v.cached != nil {
		if cred := v.cached(accessKeyID); cred != nil {
			return cred
		}
		if r.MayWait != nil {
			r.MayWait()
		}
	}
	return v.lookup(accessKeyID)
}

func (v *Verifier) verify(s *scratch, r *Request, res *Result) *wire.Error {
	requestTime, err := s.structure(r, v.noTarget)
	if err != nil {
		return err
	}
	region, err := v.scope(s)
	if err != nil {
		return err
	}

	epoch := v.keys.epoch.Load() // before the look-up: see keycache.go
	cred := v.find(s.auth.accessKeyID, r)
	// A credential without a secret would be everybody's.
	if cred == nil || !cred.Active || len(cred.Secret) == 0 || s.found.tokens > 0 {
		return errUnrecognized
	}

	const skew = int64(MaxSkew / time.Second)
	at := r.Now
	if at.IsZero() {
		at = v.clock()
	}
	if now := at.Unix(); requestTime < now-skew {
		return wire.NewError(codeInvalid, "Signature expired: %s is now earlier than %s (%s - 5 min.)",
			formatTime(requestTime), formatTime(now-skew), formatTime(now))
	} else if requestTime > now+skew {
		return wire.NewError(codeInvalid, "Signature not yet current: %s is still later than %s (%s + 5 min.)",
			formatTime(requestTime), formatTime(now+skew), formatTime(now))
	}

	bodyHash := sha256.Sum256(r.Body)
	s.canonical = s.appendCanonicalRequest(s.canonical[:0], r, s.auth.signedHeaders, &bodyHash)
	s.canonicalHash = sha256.Sum256(s.canonical)
	s.hashed = true
	if s.found.hashes > 0 && !bytes.Equal(s.found.contentHash, s.canonical[len(s.canonical)-64:]) {
		return errMismatch
	}

	date := binary.LittleEndian.Uint64(s.auth.date)
	cached := v.keys.get(&s.key, cred, region, date)
	if !cached {
		s.mac.derive(&s.key, cred.Secret, s.auth.date, region, v.service)
	}
	var got, want [32]byte
	s.mac.setWords(&s.key)
	s.mac.sum(s.appendStringToSign(s.mac.message()), &want)
	ok := s.auth.decodeSignature(&got)
	if equal := subtle.ConstantTimeCompare(got[:], want[:]) == 1; !equal || !ok {
		return errMismatch
	}
	if !cached {
		v.keys.insert(&s.key, cred, region, date, requestTime, epoch)
	}
	res.Credential, res.Region = cred, region
	return nil
}

// structure makes every check that needs nothing but the request, and returns
// its time.
func (s *scratch) structure(r *Request, noTarget bool) (int64, *wire.Error) {
	if len(r.Headers) > maxHeaders || len(r.Path) > maxTarget || len(r.Query) > maxTarget {
		return 0, wire.NewError(codeIncomplete, "The request is too large to verify: at most %d headers, %d bytes of path and %d of query.",
			maxHeaders, maxTarget, maxTarget)
	}
	f := &s.found
	f.scan(r.Headers)
	if len(r.Query) > 0 && presigned(r.Query) {
		return 0, errPresigned
	}
	switch {
	case f.authorizations == 0:
		return 0, errMissing
	case f.authorizations > 1:
		return 0, repeated("Authorization", f.authorizations)
	case f.dates > 1:
		return 0, repeated("X-Amz-Date", f.dates)
	}
	if err := s.auth.parse(f.authorization, f.dates > 0); err != nil {
		return 0, err
	}
	requestTime, ok := parseTime(f.date)
	if !ok {
		return 0, wire.NewError(codeIncomplete, "Date must be in ISO-8601 'basic format'. Got '%s'. See http://en.wikipedia.org/wiki/ISO_8601", echo(f.date))
	}
	if err := s.resolveSigned(r.Headers); err != nil {
		return 0, err
	}
	return requestTime, f.check(noTarget)
}

// check applies the rules on single headers.
func (f *found) check(noTarget bool) *wire.Error {
	for _, h := range [...]struct {
		name   string
		count  int
		must   bool
		signed bool
	}{
		{"Host", f.hosts, true, f.signsHost},
		{"X-Amz-Date", f.dates, true, f.signsDate},
		{"X-Amz-Target", f.targets, !noTarget, f.signsTarget},
		{"X-Amz-Security-Token", f.tokens, f.tokens > 0, f.signsToken},
		{"X-Amz-Content-Sha256", f.hashes, false, true},
	} {
		if h.count > 1 {
			return repeated(h.name, h.count)
		}
		if h.must && !h.signed {
			return wire.NewError(codeInvalid, "'%s' must be a 'SignedHeader' in the AWS Authorization.", h.name)
		}
	}
	if f.hashes > 0 {
		if len(f.contentHash) != 64 {
			return errContentHash
		}
		for _, c := range f.contentHash {
			if unhex[c] > 0xf {
				return errContentHash
			}
		}
	}
	return nil
}

// resolveSigned checks the SignedHeaders list and finds its headers.
func (s *scratch) resolveSigned(headers []Header) *wire.Error {
	list := s.auth.signedHeaders
	var last []byte
	for start := 0; start <= len(list); {
		end := start
		for end < len(list) && lowerToken[list[end]] {
			end++
		}
		name := list[start:end]
		if len(name) == 0 || end < len(list) && list[end] != ';' || bytes.Compare(last, name) >= 0 {
			return errSignedHeaders
		}
		if s.nsigned == maxSigned {
			return wire.NewError(codeIncomplete, "Authorization header signs more than %d headers.", maxSigned)
		}
		h := signedHeader{start: int32(start), end: int32(end), first: -1}
		for i := range headers {
			// The length is looked at here too: it settles most, without a call.
			if n := headers[i].Name; len(n) == len(name) && sameName(n, name) {
				if h.first >= 0 {
					h.repeated = true
					break
				}
				h.first = int32(i)
			}
		}
		if h.first < 0 {
			return wire.NewError(codeInvalid, "'%s' is a 'SignedHeader' in the AWS Authorization, but the request has no such header.", echo(name))
		}
		s.found.note(name)
		s.signed[s.nsigned] = h
		s.nsigned++
		last = name
		start = end + 1
	}
	return nil
}

func (f *found) note(name []byte) {
	switch string(name) {
	case "host":
		f.signsHost = true
	case "x-amz-date":
		f.signsDate = true
	case "x-amz-target":
		f.signsTarget = true
	case "x-amz-security-token":
		f.signsToken = true
	}
}

// lowerToken has the bytes of a header's name (RFC 9110's token) without the
// upper-case letters.
var lowerToken = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
		t[c] = true
	}
	return t
}()

// scope checks the credential scope and returns the region. AWS lists all that
// is wrong with it in one text.
func (v *Verifier) scope(s *scratch) (string, *wire.Error) {
	a := &s.auth
	region, served := v.region(a.region)
	day := s.found.date[:8]
	sameDay := bytes.Equal(a.date, day)
	if served && sameDay && string(a.service) == v.service && string(a.terminator) == terminator {
		return region, nil
	}
	var texts []string
	if !served {
		texts = append(texts, v.badRegion)
	}
	if string(a.service) != v.service {
		texts = append(texts, "Credential should be scoped to correct service: '"+v.service+"'.")
	}
	if string(a.terminator) != terminator {
		texts = append(texts, "Credential should be scoped with a valid terminator: '"+terminator+"', not '"+echo(a.terminator)+"'.")
	}
	if !sameDay {
		texts = append(texts, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '"+
			echo(a.date)+"' != '"+echo(day)+"', from '"+echo(s.found.date)+"'.")
	}
	return "", wire.NewError(codeInvalid, "%s", strings.Join(texts, " "))
}

func (s *scratch) appendStringToSign(dst []byte) []byte {
	dst = append(dst, algorithm+"\n"...)
	dst = append(dst, s.found.date...)
	dst = append(dst, '\n')
	dst = append(dst, s.auth.credential[len(s.auth.accessKeyID)+1:]...)
	dst = append(dst, '\n')
	return appendHex(dst, &s.canonicalHash)
}

// presigned reports whether a query carries a signature.
func presigned(query []byte) bool {
	for len(query) > 0 {
		name := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			name, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		if i := bytes.IndexByte(name, '='); i >= 0 {
			name = name[:i]
		}
		for _, p := range [...]string{"x-amz-algorithm", "x-amz-credential", "x-amz-signature", "x-amz-security-token"} {
			if len(name) == len(p) && strings.EqualFold(string(name), p) {
				return true
			}
		}
	}
	return false
}

func repeated(name string, n int) *wire.Error {
	return wire.NewError(codeIncomplete, "'%s' must be sent exactly once; the request has %d of it.", name, n)
}

func (v *Verifier) log(s *scratch, r *Request, err *wire.Error) {
	ctx := context.Background()
	if !v.logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("request_id", r.ID), slog.String("code", err.Code)}
	if len(s.auth.accessKeyID) > 0 {
		attrs = append(attrs, slog.String("access_key_id", echo(s.auth.accessKeyID)))
	}
	if s.hashed {
		attrs = append(attrs,
			slog.String("signed_headers", echo(s.auth.signedHeaders)),
			slog.String("canonical_request_sha256", hex.EncodeToString(s.canonicalHash[:])))
	}
	v.logger.LogAttrs(ctx, slog.LevelDebug, "signature refused", attrs...)
}
