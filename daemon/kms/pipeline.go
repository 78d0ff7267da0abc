package kms

import (
	"bytes"
	"errors"
	"unsafe"

	"github.com/valyala/fasthttp"

	"keymill/daemon/quota"
	"keymill/daemon/sigv4"
	"keymill/daemon/wire"
)

// ServeHTTP answers one request. It is the daemon's fasthttp handler.
func (s *Service) ServeHTTP(ctx *fasthttp.RequestCtx) {
	x := s.exchanges.Get().(*exchange)
	x.begin(ctx)
	defer x.survive()
	err := x.serve()
	x.answer(err)
	x.end()
	s.exchanges.Put(x)
}

// serve takes the request through the pipeline; x.out holds the answer's body
// when it returns nil.
func (x *exchange) serve() (err error) {
	x.out = x.out[:0]
	if err := x.route(); err != nil {
		return err
	}
	if err := x.authenticate(); err != nil {
		return err
	}
	if err := x.admitCall(); err != nil {
		return err
	}
	err = x.work()
	if err != nil && x.class == quota.NoClass { // refused before its quota was known
		if err := x.admit(quota.Symmetric); err != nil {
			return err
		}
	}
	return err
}

// work takes an authenticated request from its body to its answer.
func (x *exchange) work() (err error) {
	if !x.row.light {
		x.mayWait()
	}
	if err := x.decode(); err != nil {
		return err
	}
	if x.row.units != nil {
		x.units = x.row.units(x.in)
	}
	if x.row.quota == pairQuota {
		if err := x.admitPair(); err != nil {
			return err
		}
	}
	if x.row.run == nil {
		return wire.NewError(wire.UnsupportedOperationException, "%s is not available in this version of Keymill.", x.opName())
	}
	if err := x.refuseUnsupportedFields(); err != nil {
		return err
	}
	if x.row.key != nil {
		if x.key, err = x.row.key(x); err != nil {
			return err
		}
		// A batch of ciphertexts may name no key; then each item is judged.
		if x.key != nil {
			x.key = x.key.at(x.now)
			if x.row.quota == keyQuota {
				if err := x.admit(keyClass(x.key.spec)); err != nil {
					return err
				}
			}
			if err := x.judge(x.key, x.row.permission(x.in)); err != nil {
				return err
			}
		} else if x.row.quota == keyQuota {
			if err := x.admit(quota.Symmetric); err != nil {
				return err
			}
			x.units = 1 // of each item, on its key
		}
	}
	if err := x.row.run(x); err != nil {
		return err
	}
	if x.dryRun {
		return wire.NewError(wire.DryRunOperationException, "The request would have succeeded, but the DryRun option is set.")
	}
	if as := usedAs[x.row.op]; as != noUse {
		x.used(x.key, as, 1)
	}
	return nil
}

// route picks the row and checks what every AWS JSON request has in common.
func (x *exchange) route() error {
	req := &x.ctx.Request
	x.readHeaders(req.Header.RawHeaders())
	path, query, _ := bytes.Cut(req.Header.RequestURI(), []byte{'?'})
	x.signed.Method, x.signed.Path, x.signed.Query = req.Header.Method(), path, query
	x.signed.Headers = x.headers
	x.signed.Body = req.Body()

	if presigned(query) { // it may lack the headers below; the signature check refuses it by name
		if err := x.authenticate(); err != nil {
			return err
		}
	}
	switch ct := mediaType(x.header("content-type")); {
	case !req.Header.IsPost():
		return misdirected(fasthttp.StatusMethodNotAllowed, "Requests to this endpoint use POST, not %s.", clip(req.Header.Method()))
	case string(path) != "/":
		return misdirected(fasthttp.StatusNotFound, "Requests to this endpoint use the path /, not %s.", clip(path))
	case !equalFold(ct, wire.ContentType):
		return misdirected(fasthttp.StatusUnsupportedMediaType, "Requests to this endpoint have the Content-Type "+wire.ContentType+", not %q.", clip(ct))
	}
	target := x.header("x-amz-target")
	op, ok := wire.OpByTarget(target)
	if !ok {
		return wire.NewError(wire.UnknownOperationException, "no such X-Amz-Target: %q", clip(target))
	}
	x.row = &operations[op]
	return nil
}

// misdirected is the answer to what is not an AWS JSON request at all. AWS KMS
// says nothing more about an unknown operation; who sent something else by hand
// is told what to change.
func misdirected(status int, format, what string) error {
	e := wire.NewError(wire.UnknownOperationException, format, what).WithStatus(status)
	e.NoMessage = false
	return e
}

// readHeaders splits the header block as it was sent, repeated and folded lines
// included, so that the operation, the media type and the signature are all
// judged on the same reading. A line that continues the one before it keeps the
// line break in the value; daemon/sigv4 says what it makes of that.
func (x *exchange) readHeaders(raw []byte) {
	for len(raw) > 0 {
		line := raw
		end := bytes.IndexByte(raw, '\n')
		for end >= 0 && end+1 < len(raw) && (raw[end+1] == ' ' || raw[end+1] == '\t') {
			next := bytes.IndexByte(raw[end+1:], '\n')
			if next < 0 {
				end = -1
				break
			}
			end += 1 + next
		}
		if end >= 0 {
			line, raw = raw[:end], raw[end+1:]
		} else {
			raw = nil
		}
		name, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte{'\r'}), []byte{':'})
		if ok {
			x.headers = append(x.headers, sigv4.Header{Name: name, Value: value})
		}
	}
}

// header returns the value of the first header of that lower-case name, trimmed.
func (x *exchange) header(name string) []byte {
	for i := range x.headers {
		if h := &x.headers[i]; equalFold(h.Name, name) {
			return bytes.TrimSpace(h.Value)
		}
	}
	return nil
}

// equalFold compares ASCII without regard to case; lower is lower-case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// mediaType returns a Content-Type without its parameters.
func mediaType(ct []byte) []byte {
	ct, _, _ = bytes.Cut(ct, []byte{';'})
	return bytes.TrimSpace(ct)
}

// presigned tells whether a query carries a signature.
func presigned(query []byte) bool { return bytes.Contains(query, []byte("X-Amz-Algorithm=")) }

// clip bounds what an error repeats of the request's head.
func clip(b []byte) string {
	if len(b) > 128 {
		return string(b[:128]) + "..."
	}
	return string(b)
}

func (x *exchange) authenticate() error {
	x.signed.ID, x.signed.Now, x.signed.MayWait = unsafe.String(&x.id[0], len(x.id)), x.now, x.mayWaitFunc
	if err := x.svc.verify.Verify(&x.signed, &x.auth); err != nil {
		return err
	}
	x.account = x.auth.Credential.Account
	x.region = x.auth.Region
	return nil
}

func (x *exchange) decode() error {
	op := x.row.op
	in := x.inputs[op]
	if in == nil {
		in = wire.NewInput(op)
		x.inputs[op] = in
	}
	x.in = in
	if err := in.DecodeJSON(&x.dec, x.signed.Body); err != nil {
		return err
	}
	x.violations.Reset()
	in.Validate(&x.violations)
	if err := x.violations.Err(); err != nil {
		return err
	}
	return nil
}

// refuseUnsupportedFields answers for request members that many operations share
// and that Keymill cannot honour yet, and reads the grant tokens. A caller who
// sends an attestation document must never get plaintext.
func (x *exchange) refuseUnsupportedFields() error {
	c := common(x.in)
	if c.recipient != nil {
		return wire.NewError(wire.UnsupportedOperationException, "Recipient is not supported: this version of Keymill cannot verify attestation documents.")
	}
	if len(c.grantTokens) > 0 {
		if err := x.readGrantTokens(c.grantTokens); err != nil {
			return err
		}
	}
	if len(c.modifiers) > 0 && !c.dryRun {
		return wire.NewError(wire.ValidationException, "DryRunModifiers can only be used when DryRun is true.")
	}
	x.dryRun = c.dryRun
	return nil
}

// judge decides whether the operation may go on with v: the caller's permission,
// the key's quota, its usage, its state. The order is AWS's: who may not see a
// key learns nothing of its state.
func (x *exchange) judge(v *keyView, action string) error {
	if err := x.authorise(v, action); err != nil {
		return err
	}
	if err := x.admitKey(v); err != nil {
		return err
	}
	usable := x.row.usage == 0 || v.usage == x.row.usage
	refused := x.row.states.check(v.at(x.now).state, v.arn)
	if usable && refused == nil {
		return nil
	}
	if err := x.ciphertextOf(v); err != nil { // else open finds it
		return err
	}
	if !usable {
		return wire.NewError(wire.InvalidKeyUsageException, "%s key usage is %s which is not valid for %s.", v.arn, v.usage, x.opName())
	}
	return refused
}

// authorise is the place of the permission check. Today the only principal is
// the account's root user, whose access key signed the request, and every key
// view it can reach belongs to that account; stored key policies are not
// evaluated yet, which the daemon says at start. Only that of AWS managed keys,
// which nobody can change, is.
func (x *exchange) authorise(v *keyView, action string) error {
	if v.rec.Account != x.account {
		return keyNotFound(v.arn)
	}
	if v.rec.Manager == managerAWS {
		return x.authoriseManaged(v, action)
	}
	return nil
}

func (x *exchange) opName() string {
	if x.row == nil {
		return "unknown"
	}
	return x.row.op.String()
}

var requestIDHeader = []byte("x-amzn-RequestId")

// answer writes the response: x.out when err is nil, else the error's body.
func (x *exchange) answer(err error) {
	resp := &x.ctx.Response
	status := fasthttp.StatusOK
	code := ""
	if err != nil {
		e := x.wireError(err)
		status, code = e.Status, e.Code
		x.wipeOut()
		x.out = e.AppendJSON(x.out)
	}
	x.svc.counts.add(x.row, code)
	resp.SetStatusCode(status)
	resp.Header.SetContentType(wire.ContentType)
	resp.Header.SetCanonical(requestIDHeader, x.id[:])
	if b := x.bulk; b != nil {
		x.bulk = nil
		if err == nil {
			b.send(resp)
			return
		}
		_ = b.Close()
	}
	// The connection gets this buffer and gives one in exchange: no copy. What it
	// gives may have been the body of an earlier answer.
	x.out = resp.SwapBody(x.out)
	x.wipeOut()
}

// wipeOut clears a body that is not sent, or was: it may hold plaintext.
func (x *exchange) wipeOut() {
	clear(x.out[:cap(x.out)])
	x.out = x.out[:0]
}

// wireError maps whatever went wrong to what the caller is told. Causes that
// are not the caller's go to the log under the request id.
func (x *exchange) wireError(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	e = mapError(err)
	x.svc.log.Error("request failed", "request_id", string(x.id[:]), "operation", x.opName(), "answered", e.Code, "error", err)
	return e
}
