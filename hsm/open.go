package hsm

// OpenPKCS11 opens the root of trust in a PKCS#11 token: it loads the module (in a
// process of its own when cfg.Child is set), finds the token, logs in, and chooses a
// mechanism by a self test. The error says which of these failed and what would help;
// [Inspect] tells more.
func OpenPKCS11(cfg PKCS11Config) (Root, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Child != nil {
		return openChild(cfg)
	}
	return openModuleHere(cfg)
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
