package kms

import (
	"time"

	"keymill/keystore"
)

// destroyDue destroys a key whose waiting period is over.
func (s *Service) destroyDue(rec *keystore.Key, now time.Time) error { return nil }
