package kms

import (
	"testing"
)

// TestNobodySeesLess: a request that was answered by a record newer than the view of a
// key, because another request has committed a change and not dropped the view yet,
// is the last that could have been answered by the view.
func TestNobodySeesLess(t *testing.T) {
	for _, c := range []struct {
		op   string
		more args
	}{
		{"DisableKey", nil},
		{"TagResource", args{"Tags": []args{{"TagKey": "a", "TagValue": "b"}}}},
		{"CreateGrant", args{"GranteePrincipal": userAlice, "Operations": []string{"Encrypt"}}},
		{"RotateKeyOnDemand", nil},
		{"ReplicateKey", args{"ReplicaRegion": replicaRegion}},
	} {
		h := newHarness(t)
		id, arn := h.multiRegion(nil)
		use := args{"KeyId": id, "Plaintext": "aGVsbG8="}
		h.must("Encrypt", use)
		k := *h.record(id)
		k.State, k.DeletionDate, k.PendingWindowDays = "PendingDeletion", h.now.Add(7*day), 7
		tx := h.store.NewTxn()
		tx.PutKey(&k, k.Revision)
		if err := commit(tx); err != nil {
			t.Fatal(err)
		}
		h.must("Encrypt", use) // before the other request was answered
		h.refused(c.op, merged(c.more, args{"KeyId": id}), "KMSInvalidStateException", arn+" is pending deletion.")
		h.refused("Encrypt", use, "KMSInvalidStateException", arn+" is pending deletion.")
	}
}

// TestNobodySeesLessOfAliases is the same for an alias that was removed.
func TestNobodySeesLessOfAliases(t *testing.T) {
	for _, op := range []string{"UpdateAlias", "DeleteAlias"} {
		h := newHarness(t)
		id, _ := h.newKey(nil)
		const name = "alias/a"
		h.must("CreateAlias", args{"AliasName": name, "TargetKeyId": id})
		h.must("DescribeKey", args{"KeyId": name})
		a, err := h.store.Alias(testAccount, testRegion, name)
		if err != nil {
			t.Fatal(err)
		}
		tx := h.store.NewTxn()
		tx.DeleteAlias(a)
		if err := commit(tx); err != nil {
			t.Fatal(err)
		}
		h.must("DescribeKey", args{"KeyId": name}) // before the other request was answered
		in := args{"AliasName": name}
		if op == "UpdateAlias" {
			in["TargetKeyId"] = id
		}
		missing := "Alias " + aliasARN(testRegion, testAccount, name) + " is not found."
		h.refused(op, in, "NotFoundException", missing)
		h.refused("DescribeKey", args{"KeyId": name}, "NotFoundException", missing)
	}
}
