package kms

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// Page sizes of the API Reference. A Limit over the operation's maximum is taken
// as the maximum: a page may always be shorter than asked.
const (
	defaultKeyPage   = 100
	maxKeyPage       = 1000
	defaultAliasPage = 50
	maxAliasPage     = 100
)

func pageSize(limit wire.Opt[int64], byDefault, most int) int {
	if !limit.Set {
		return byDefault
	}
	return min(int(limit.V), most)
}

// A marker is where a page ended: the last item's sort key, with the operation's
// name so that it cannot be taken for another list's. It reads
// base64url(operation 0x00 sort key) and promises callers nothing.

func (x *exchange) marker(last string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(x.opName() + "\x00" + last))
}

// readMarker returns the sort key after which the page begins, "" for no marker.
func (x *exchange) readMarker(marker string) (after string, err error) {
	if marker == "" {
		return "", nil
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(marker)
	if err != nil {
		return "", invalidMarker()
	}
	after, ok := strings.CutPrefix(string(text), x.opName()+"\x00")
	if !ok || after == "" {
		return "", invalidMarker()
	}
	return after, nil
}

func invalidMarker() error {
	return wire.NewError(wire.InvalidMarkerException, "The marker is not one that this operation returned as NextMarker.")
}

func listKeys(x *exchange, in *wire.ListKeysRequest) error {
	text, err := x.readMarker(in.Marker)
	if err != nil {
		return err
	}
	after, ok := engine.ParseKeyID(text)
	if !ok && text != "" {
		return invalidMarker()
	}
	found, more, err := x.svc.store.ListKeys(x.account, x.region, after.ID, ok, pageSize(in.Limit, defaultKeyPage, maxKeyPage))
	if err != nil {
		return err
	}
	resp := wire.ListKeysResponse{Keys: make([]wire.KeyListEntry, 0, len(found)), Truncated: wire.Some(more)}
	prefix := keyARN(x.region, x.account, "")
	arns := make([]byte, 0, len(found)*(len(prefix)+engine.KeyIDLen))
	for _, k := range found {
		arns = engine.KeyID{ID: k.ID, MultiRegion: k.MultiRegion}.AppendText(append(arns, prefix...))
	}
	for rest := string(arns); rest != ""; { // one string for all
		arn := rest[:len(prefix)+engine.KeyIDLen]
		rest = rest[len(arn):]
		resp.Keys = append(resp.Keys, wire.KeyListEntry{KeyId: arn[len(prefix):], KeyArn: arn})
	}
	if more {
		resp.NextMarker = x.marker(resp.Keys[len(found)-1].KeyId)
	}
	x.out = resp.AppendJSON(slices.Grow(x.out, len(arns)+len(found)*2*engine.KeyIDLen))
	return nil
}

func listAliases(x *exchange, in *wire.ListAliasesRequest) error {
	after, err := x.readMarker(in.Marker)
	if err != nil {
		return err
	}
	limit := pageSize(in.Limit, defaultAliasPage, maxAliasPage)
	var found []*keystore.Alias
	var more bool
	if in.KeyId != "" {
		v, err := x.resolve(in.KeyId, keysOnly)
		if err != nil {
			return err
		}
		if err := x.judge(v, x.row.action); err != nil {
			return err
		}
		found, more, err = x.svc.store.ListKeyAliases(v.ref, after, limit)
		if err != nil {
			return err
		}
	} else {
		if found, more, err = x.svc.store.ListAliases(x.account, x.region, after, limit); err != nil {
			return err
		}
		found, more = x.withPredefined(found, more, after, limit)
	}
	resp := wire.ListAliasesResponse{Aliases: make([]wire.AliasListEntry, 0, len(found)), Truncated: wire.Some(more)}
	for _, a := range found {
		if a.Target == (keystore.KeyID{}) { // predefined, without a key
			resp.Aliases = append(resp.Aliases, wire.AliasListEntry{AliasName: a.Name, AliasArn: aliasARN(a.Region, a.Account, a.Name)})
			continue
		}
		target, err := x.svc.store.Key(keystore.Ref{Region: a.Region, ID: a.Target})
		if errors.Is(err, keystore.ErrNotFound) {
			continue // deleted since the page was read
		} else if err != nil {
			return err
		}
		resp.Aliases = append(resp.Aliases, wire.AliasListEntry{
			AliasName:       a.Name,
			AliasArn:        aliasARN(a.Region, a.Account, a.Name),
			TargetKeyId:     engine.KeyID{ID: target.ID, MultiRegion: target.MultiRegion}.String(),
			CreationDate:    timestamp(a.Created),
			LastUpdatedDate: timestamp(a.Updated),
		})
	}
	if more {
		resp.NextMarker = x.marker(found[len(found)-1].Name)
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}
