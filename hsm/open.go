package hsm

// OpenPKCS11 opens the root of trust in a PKCS#11 token: it loads the module (in a
// process of its own when cfg.Child is set), finds the token, logs in, and chooses a
// mechanism by a self test. The error says which of these failed and what would help;
// [Inspect] tells more.
func OpenPKCS11(cfg PKCS11Config) (Root, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Child == nil {
		return openModuleHere(cfg)
	}
	r, err := openChild(cfg)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Inspect looks at a module and a token as OpenPKCS11 would and reports what it finds.
// It logs in once, makes keys for the self test and removes them, and changes nothing
// else. Problems of the token are in the report; the error is for a configuration that
// cannot be looked at and for a module that cannot be loaded or does not answer.
func Inspect(cfg PKCS11Config) (*Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Child != nil {
		return inspectChild(cfg)
	}
	return inspectModuleHere(cfg)
}

// OpenToken opens a token that holds keys of users, with the PIN of the crypto user in
// place of cfg.PINFile. It takes pin over: moves it to locked memory, where it stays
// until Close, since a token that was away wants it again, and wipes the slice.
//
// Without cfg.Child, a token into which this process has logged in already takes any PIN:
// a login is the process's, and the token is not asked again.
//
// The errors are those of OpenPKCS11, most of all ErrTokenMissing, ErrPINIncorrect and
// ErrTokenLocked.
func OpenToken(cfg PKCS11Config, pin []byte) (TokenKeys, error) {
	held, err := holdPIN(pin)
	if err != nil {
		return nil, err
	}
	cfg.pin = held
	if err := cfg.Validate(); err != nil {
		held.Wipe()
		return nil, err
	}
	if cfg.Child == nil {
		return openModuleHere(cfg) // which wipes the PIN when it fails
	}
	r, err := openChild(cfg)
	if err != nil {
		held.Wipe()
		return nil, err
	}
	return r, nil
}
