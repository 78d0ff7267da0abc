package sigv4

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"
)

// A Signer signs requests of ours to another service, with Host and X-Amz-Date
// as the only signed headers. It keeps the secret and the day's signing key
// until Wipe. It is safe for concurrent use.
type Signer struct {
	// Immutable after NewSigner.
	id, region, service string

	// Guarded by mu.
	mu     sync.Mutex
	secret []byte // nil after Wipe
	day    string // the day that key is for
	key    keyWords
	mac    hmacBuffer
}

// NewSigner returns a Signer for one access key, region and service. It copies
// secret.
func NewSigner(accessKeyID string, secret []byte, region, service string) *Signer {
	return &Signer{id: accessKeyID, region: region, service: service, secret: bytes.Clone(secret)}
}

// Sign returns the values of X-Amz-Date and Authorization for a POST to path,
// which has no query and needs no encoding. After Wipe it returns signatures
// that verify nowhere.
func (s *Signer) Sign(host, path string, body []byte, now time.Time) (date, authorization string) {
	date = now.UTC().Format(timeFormat)
	day := date[:8]
	scope := day + "/" + s.region + "/" + s.service + "/" + terminator
	const signed = "host;x-amz-date"

	sum := sha256.Sum256(body)
	creq := appendPath([]byte("POST\n"), []byte(path))
	creq = append(creq, "\n\nhost:"+host+"\nx-amz-date:"+date+"\n\n"+signed+"\n"...)
	creq = hex.AppendEncode(creq, sum[:])
	sum = sha256.Sum256(creq)

	s.mu.Lock()
	if s.secret != nil && s.day != day {
		s.mac.derive(&s.key, s.secret, []byte(day), s.region, s.service)
		s.day = day
	}
	s.mac.setWords(&s.key)
	msg := append(s.mac.message(), algorithm+"\n"+date+"\n"+scope+"\n"...)
	s.mac.sum(hex.AppendEncode(msg, sum[:]), &sum)
	s.mac.wipe()
	s.mu.Unlock()

	return date, algorithm + " Credential=" + s.id + "/" + scope + ", SignedHeaders=" + signed + ", Signature=" + hex.EncodeToString(sum[:])
}

// Wipe forgets the secret.
func (s *Signer) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	wipe(s.secret)
	s.secret, s.day = nil, ""
	clear(s.key[:])
	s.mac.wipe()
}
