//go:build !cgo

package hsm

import "fmt"

// OpenPKCS11 needs cgo, which this program was built without.
func OpenPKCS11(cfg PKCS11Config) (Root, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: this program was built without cgo; build it with CGO_ENABLED=1", ErrModule)
}

// Inspect needs cgo, which this program was built without.
func Inspect(cfg PKCS11Config) (*Report, error) {
	_, err := OpenPKCS11(cfg)
	return nil, err
}
