package engine

import (
	"crypto/ed25519"
)

// newPrivateKey reads the private key of a spec and has the picked provider
// compute with it.
func newPrivateKey(spec Spec, usage Usage, der []byte, pick picker) (privateKey, error) {
	task := privateTask(spec, usage)
	p := pick(spec, task)
	if p == NoProvider && !spec.MLDSA() {
		return nil, ErrNoProvider
	}
	parsed, err := parsePrivateKey(spec, der)
	if err != nil {
		return nil, err
	}
	switch key := parsed.(type) {
	case *rsaPrivate:
		if p == OpenSSL {
			return opensslRSAPrivate(key.key)
		}
	case *ecdsaPrivate:
		switch {
		case p == OpenSSL && task == TaskSign:
			return opensslECDSAPrivate(key)
		case p == OpenSSL:
			return opensslECDHPrivate(key)
		}
	case *ed25519Private:
		if p == GoStd {
			return &ed25519StdPrivate{ed25519.PrivateKey(key.key)}, nil
		}
	case *mldsaPrivate:
		key.raw, key.mu = p, pick(spec, TaskSignMu)
	}
	return parsed, nil
}

// newPublicKey reads the public key of a spec and has the picked provider
// compute with it.
func newPublicKey(spec Spec, usage Usage, der []byte, pick picker) (publicKey, error) {
	p := pick(spec, publicTask(usage))
	if p == NoProvider && !spec.MLDSA() {
		return nil, ErrNoProvider
	}
	parsed, err := parsePublicKey(spec, der)
	if err != nil {
		return nil, err
	}
	switch key := parsed.(type) {
	case *rsaPublic:
		if p == OpenSSL {
			return opensslRSAPublic(key.key)
		}
	case *ecdsaPublic:
		switch p {
		case OpenSSL:
			return opensslECDSAPublic(key.key)
		case CIRCL:
			return newP384Public(key.key)
		}
	case *ed25519Public:
		if p == Edwards25519 {
			return newEd25519Plain(key.bytes)
		}
	case *mldsaPublic:
		key.raw, key.mu = p, pick(spec, TaskVerifyMu)
	}
	return parsed, nil
}
