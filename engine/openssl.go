package engine

import (
	"fmt"
)

// opensslFixed is, for each 3.x, the first patch release without the timing
// leaks that CVE-2022-4304 (RSA decryption) and CVE-2024-13176 (ECDSA nonces,
// worst on P-521) describe. Later minor versions never had them. A distribution
// that repairs an older version keeps its number; such a library is refused,
// since the number is all there is to see.
var opensslFixed = [...]int{0: 16, 1: 8, 2: 4, 3: 3, 4: 1}

// checkOpenSSLVersion says why a libcrypto of this version text is not used.
func checkOpenSSLVersion(text string) error {
	var major, minor, patch int
	if _, err := fmt.Sscanf(text, "OpenSSL %d.%d.%d", &major, &minor, &patch); err != nil {
		return fmt.Errorf("not a version of OpenSSL 3: %q", text)
	}
	switch {
	case major != 3:
		return fmt.Errorf("%s: only OpenSSL 3 is used", text)
	case minor < len(opensslFixed) && patch < opensslFixed[minor]:
		return fmt.Errorf("%s: private keys leak through timing before 3.%d.%d (CVE-2022-4304, CVE-2024-13176)", text, minor, opensslFixed[minor])
	}
	return nil
}

// absentProviders says why the providers that are not part of this binary
// cannot be used. A forbidden library is not even loaded.
func absentProviders(forbid [numProviders]bool) (why [numProviders]string) {
	if !forbid[OpenSSL] {
		if err := loadOpenSSL(); err != nil {
			why[OpenSSL] = err.Error()
		}
	}
	return why
}
