//go:build cgo

package hsm

// UseLimit is the bound on encryptions under one domain key.
const UseLimit = useLimit

// Use counts n encryptions under a domain key without making them.
func Use(r Root, id DomainKeyID, n int) error { return r.(*pkcs11Root).t.spend(id, n) }
