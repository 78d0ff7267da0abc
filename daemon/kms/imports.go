package kms

import (
	"time"

	"keymill/keystore"
)

// importRows are the operations on imported key material.
var importRows = []operation{}

// expireDue deletes imported material whose time is over.
func (s *Service) expireDue(rec *keystore.Key, now time.Time) error { return nil }
