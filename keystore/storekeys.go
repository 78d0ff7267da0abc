package keystore

// # Keys in custom key stores
//
// A key may live in a custom key store, which the Key's CustomKeyStore names for
// good. The store keeps a list of the keys of each, and of the external keys that
// they use: an external key belongs to at most one key of a key store. Both lists
// follow the keys' records by themselves.

func storeKeyName(store string, ref Ref) Name {
	return Name{Kind: KindStoreKey, Account: store, Region: ref.Region, ID: ref.ID}
}

func externalName(store, external string) Name {
	return Name{Kind: KindExternal, Account: store, Name: external}
}

// enterStore lists a new key in its custom key store. An external key that
// another key uses is ErrConflict.
func (w *writer) enterStore(ref Ref, store, external string) error {
	if store == "" {
		return nil
	}
	plain, err := encode(&dueRecord{})
	if err != nil {
		return err
	}
	if err := w.put(storeKeyName(store, ref).key(), plain, true); err != nil {
		return err
	}
	if external == "" {
		return nil
	}
	key := externalName(store, external).key()
	if _, err := w.expect(key, 0); err != nil {
		return err
	}
	if plain, err = encode(&externalRecord{ref.Region, ref.ID[:]}); err != nil {
		return err
	}
	return w.put(key, plain, true)
}

// leaveStore is enterStore's reverse.
func (w *writer) leaveStore(k *Key) error {
	if k.CustomKeyStore == "" {
		return nil
	}
	if err := w.delete(storeKeyName(k.CustomKeyStore, k.Ref()).key(), true); err != nil {
		return err
	}
	if k.ExternalKeyID == "" {
		return nil
	}
	return w.delete(externalName(k.CustomKeyStore, k.ExternalKeyID).key(), true)
}

func decodeExternal(b []byte) (Ref, error) {
	var r externalRecord
	if err := decode(b, &r); err != nil {
		return Ref{}, err
	}
	if len(r.ID) != len(KeyID{}) || r.Region == "" {
		return Ref{}, errValue
	}
	return Ref{r.Region, KeyID(r.ID)}, nil
}

// ListStoreKeys returns up to limit keys of a custom key store, in the order of
// region and id, after one of them when after is not nil.
func (s *Store) ListStoreKeys(store string, after *Ref, limit int) (keys []Ref, more bool, err error) {
	var from []byte
	if after != nil {
		from = storeKeyName(store, *after).key()
	}
	n := storeKeyName(store, Ref{})
	return list(s, n.prefix(1), from, limit, func(r *raw, _ []byte) (Ref, error) {
		return Ref{r.name.Region, r.name.ID}, nil
	})
}

// ExternalKey returns the key that uses an external key of a custom key store,
// or ErrNotFound.
func (s *Store) ExternalKey(store, external string) (Ref, error) {
	ref, _, err := read(s, externalName(store, external), func(_ *Name, b []byte) (Ref, error) { return decodeExternal(b) })
	return ref, err
}
