package perf

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strconv"
	"time"
)

// Credentials are an access key.
type Credentials struct {
	AccessKeyID string
	Secret      []byte
}

// String leaves the secret out, so that printing a structure cannot show it.
func (c Credentials) String() string { return c.AccessKeyID }

// GoString is String.
func (c Credentials) GoString() string { return c.AccessKeyID }

const (
	service     = "kms"
	contentType = "application/x-amz-json-1.1"
	dateForm    = "20060102T150405Z"

	dateLen      = len(dateForm)
	dayLen       = len("20060102")
	signatureLen = 2 * sha256.Size
)

// A builder makes the requests of one connection and one operation: head,
// Signature Version 4 over content-type, host, x-amz-date and x-amz-target, and
// body. Everything but date, signature, length and body is laid out once; a
// request costs two SHA-256 and one HMAC, and no allocation. Nothing is carried
// over from one request's signature to the next but the signing key, which is a
// day's.
//
// It belongs to one goroutine.
type builder struct {
	creds  Credentials
	region string

	second int64     // the time that date and day are for
	day    string    // the day that mac is for
	mac    hash.Hash // HMAC under the day's signing key

	head  []byte // request's head up to the Content-Length's value
	canon []byte // canonical request up to the body's hash
	sts   []byte // string to sign, complete

	// Where the changing parts lie.
	headDate, headDay, headSignature int
	canonDate                        int
	stsDate, stsDay, stsHash         int

	sum [sha256.Size]byte
}

// newBuilder returns a builder for requests with the given X-Amz-Target.
func newBuilder(host, region, target string, creds Credentials) *builder {
	const noDate, noDay = "00000000T000000Z", "00000000"
	const signed = "content-type;host;x-amz-date;x-amz-target"
	b := &builder{creds: creds, region: region}
	scope := "/" + region + "/" + service + "/aws4_request"

	b.head = append(b.head, "POST / HTTP/1.1\r\nHost: "+host+"\r\nContent-Type: "+contentType+
		"\r\nX-Amz-Target: "+target+"\r\nX-Amz-Date: "...)
	b.headDate = len(b.head)
	b.head = append(b.head, noDate+"\r\nAuthorization: AWS4-HMAC-SHA256 Credential="+creds.AccessKeyID+"/"...)
	b.headDay = len(b.head)
	b.head = append(b.head, noDay+scope+", SignedHeaders="+signed+", Signature="...)
	b.headSignature = len(b.head)
	b.head = append(b.head, make([]byte, signatureLen)...)
	b.head = append(b.head, "\r\nContent-Length: "...)

	b.canon = append(b.canon, "POST\n/\n\ncontent-type:"+contentType+"\nhost:"+host+"\nx-amz-date:"...)
	b.canonDate = len(b.canon)
	b.canon = append(b.canon, noDate+"\nx-amz-target:"+target+"\n\n"+signed+"\n"...)
	b.canon = append(b.canon, make([]byte, signatureLen)...) // the body's hash

	b.sts = append(b.sts, "AWS4-HMAC-SHA256\n"...)
	b.stsDate = len(b.sts)
	b.sts = append(b.sts, noDate+"\n"...)
	b.stsDay = len(b.sts)
	b.sts = append(b.sts, noDay+scope+"\n"...)
	b.stsHash = len(b.sts)
	b.sts = append(b.sts, make([]byte, signatureLen)...)
	return b
}

// append appends a complete request, signed for the time now.
func (b *builder) append(dst []byte, now time.Time, body []byte) []byte {
	if s := now.Unix(); s != b.second || b.mac == nil {
		b.setTime(now)
	}
	b.sum = sha256.Sum256(body)
	hex.Encode(b.canon[len(b.canon)-signatureLen:], b.sum[:])
	b.sum = sha256.Sum256(b.canon)
	hex.Encode(b.sts[b.stsHash:], b.sum[:])
	b.mac.Reset()
	b.mac.Write(b.sts)
	hex.Encode(b.head[b.headSignature:], b.mac.Sum(b.sum[:0]))

	dst = append(dst, b.head...)
	dst = strconv.AppendInt(dst, int64(len(body)), 10)
	dst = append(dst, "\r\n\r\n"...)
	return append(dst, body...)
}

// setTime writes another second into all three texts and derives another
// signing key when the day changed.
func (b *builder) setTime(now time.Time) {
	var date [dateLen]byte
	now.UTC().AppendFormat(date[:0], dateForm)
	copy(b.head[b.headDate:], date[:])
	copy(b.head[b.headDay:], date[:dayLen])
	copy(b.canon[b.canonDate:], date[:])
	copy(b.sts[b.stsDate:], date[:])
	copy(b.sts[b.stsDay:], date[:dayLen])
	b.second = now.Unix()
	if day := string(date[:dayLen]); day != b.day {
		b.day = day
		b.mac = hmac.New(sha256.New, signingKey(b.creds.Secret, day, b.region))
	}
}

// signingKey derives a day's signing key.
func signingKey(secret []byte, day, region string) []byte {
	key := append([]byte("AWS4"), secret...)
	for _, part := range [...]string{day, region, service, "aws4_request"} {
		h := hmac.New(sha256.New, key)
		clear(key)
		h.Write([]byte(part))
		key = h.Sum(nil)
	}
	return key
}
