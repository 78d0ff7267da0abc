//go:build !cgo || !linux

package engine

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
)

// This binary cannot load libcrypto. The provider is absent, so nothing below
// is ever called.

var errNoOpenSSL = errors.New("this binary was built without cgo, or not for Linux")

func loadOpenSSL() error     { return errNoOpenSSL }
func opensslVersion() string { return "" }

func opensslRSAPrivate(*rsa.PrivateKey) (privateKey, error)  { return nil, errNoOpenSSL }
func opensslRSAPublic(*rsa.PublicKey) (publicKey, error)     { return nil, errNoOpenSSL }
func opensslECDSAPrivate(*ecdsaPrivate) (privateKey, error)  { return nil, errNoOpenSSL }
func opensslECDSAPublic(*ecdsa.PublicKey) (publicKey, error) { return nil, errNoOpenSSL }
func opensslECDHPrivate(*ecdsaPrivate) (privateKey, error)   { return nil, errNoOpenSSL }
