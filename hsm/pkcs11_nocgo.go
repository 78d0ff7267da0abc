//go:build !cgo

package hsm

import "fmt"

// openModuleHere needs cgo, which this program was built without.
func openModuleHere(PKCS11Config) (device, error) {
	return nil, fmt.Errorf("%w: this program was built without cgo; build it with CGO_ENABLED=1", ErrModule)
}

func inspectModuleHere(cfg PKCS11Config) (*Report, error) {
	_, err := openModuleHere(cfg)
	return nil, err
}
