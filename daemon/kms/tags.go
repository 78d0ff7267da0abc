package kms

import (
	"sort"
	"strings"

	"keymill/daemon/wire"
	"keymill/keystore"
)

// maxTagPage is the default and the maximum of ListResourceTags' Limit.
const maxTagPage = 50

// mergeTags returns have with add laid over it, sorted by key, at most so many.
// The strings of add are cloned.
func mergeTags(have []keystore.Tag, add []wire.Tag, most int) ([]keystore.Tag, error) {
	seen := make(map[string]bool, len(add))
	merged := make([]keystore.Tag, 0, len(have)+len(add))
	for _, t := range add {
		if len(t.TagKey) >= 4 && strings.EqualFold(t.TagKey[:4], "aws:") {
			return nil, tagError("Tags beginning with aws: are reserved")
		}
		if seen[t.TagKey] {
			return nil, tagError("Duplicate tag keys")
		}
		seen[t.TagKey] = true
		merged = append(merged, keystore.Tag{Key: strings.Clone(t.TagKey), Value: strings.Clone(t.TagValue)})
	}
	for _, t := range have {
		if !seen[t.Key] {
			merged = append(merged, t)
		}
	}
	if len(merged) > most {
		return nil, tagError("Too many tags")
	}
	sort.Slice(merged, func(i, j int) bool { return merged[i].Key < merged[j].Key })
	return merged, nil
}

func tagError(text string) error { return wire.NewError(wire.TagException, "%s", text) }

func tagResource(x *exchange, in *wire.TagResourceRequest) error {
	return x.changeTags(func(have []keystore.Tag) ([]keystore.Tag, error) {
		return mergeTags(have, in.Tags, x.svc.quota.Resources().TagsPerKey)
	})
}

func untagResource(x *exchange, in *wire.UntagResourceRequest) error {
	gone := make(map[string]bool, len(in.TagKeys))
	for _, k := range in.TagKeys {
		gone[k] = true
	}
	return x.changeTags(func(have []keystore.Tag) ([]keystore.Tag, error) {
		kept := make([]keystore.Tag, 0, len(have))
		for _, t := range have {
			if !gone[t.Key] {
				kept = append(kept, t)
			}
		}
		return kept, nil
	})
}

func (x *exchange) changeTags(change func(have []keystore.Tag) ([]keystore.Tag, error)) error {
	ref := x.key.ref
	return x.updateKey(x.key, func(_ *keystore.Key, t *keystore.Txn) error {
		have, rev, err := x.svc.store.Tags(ref)
		if err != nil {
			return err
		}
		next, err := change(have)
		if err != nil {
			return err
		}
		t.PutTags(ref, next, rev)
		return nil
	})
}

func listResourceTags(x *exchange, in *wire.ListResourceTagsRequest) error {
	after, err := x.readMarker(in.Marker)
	if err != nil {
		return err
	}
	tags, _, err := x.svc.store.Tags(x.key.ref)
	if err != nil {
		return err
	}
	i := sort.Search(len(tags), func(i int) bool { return in.Marker == "" || tags[i].Key > after })
	tags = tags[i:]
	limit := pageSize(in.Limit, maxTagPage, maxTagPage)
	resp := wire.ListResourceTagsResponse{Tags: []wire.Tag{}, Truncated: wire.Some(len(tags) > limit)}
	if len(tags) > limit {
		tags = tags[:limit]
		resp.NextMarker = x.marker(tags[limit-1].Key)
	}
	for _, t := range tags {
		resp.Tags = append(resp.Tags, wire.Tag{TagKey: t.Key, TagValue: t.Value})
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}
