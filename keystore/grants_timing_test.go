package keystore

import (
	"context"
	"fmt"
	"testing"

	"keymill/hsm/hsmtest"
)

// BenchmarkGrants measures what is done to a key's grants by how many it has. A
// commit does not wait for the disk here: what is measured is the store's own work.
func BenchmarkGrants(b *testing.B) {
	for _, n := range []int{1, 1_000, 50_000} {
		b.Run(fmt.Sprint("grants=", n), func(b *testing.B) {
			ctx := context.Background()
			s, err := Open(ctx, Options{Dir: b.TempDir(), Root: hsmtest.NewMemory(), noSync: true})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			k := withoutMaterial(1)
			txn := s.NewTxn()
			txn.PutKey(k, 0)
			commit := func() {
				if _, err := txn.Commit(ctx); err != nil {
					b.Fatal(err)
				}
			}
			commit()
			numbered := func(i int) *Grant {
				g := named(testGrant(k.Ref(), i))
				g.Name = fmt.Sprint("grant-", i)
				g.Grantee = fmt.Sprint(alice, i)
				return g
			}
			for i := 0; i < n; {
				txn = s.NewTxn()
				for end := min(n, i+20); i < end; i++ {
					txn.PutGrant(numbered(i), 0)
				}
				commit()
			}
			b.Run("find by name", func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					if _, err := s.SameGrant(numbered(i * 7919 % n)); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("find by grantee", func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					at := i * 7919 % n
					if found, _, err := s.ListGranteeGrants(k.Ref(), numbered(at).Grantee, "", 100); err != nil || len(found) != 1 {
						b.Fatal(len(found), err)
					}
				}
			})
			b.Run("page of 100", func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					after := grantID(i * 7919 % n)
					if n == 1 {
						after = ""
					}
					if _, _, err := s.ListGrants(k.Ref(), after, 100); err != nil {
						b.Fatal(err)
					}
				}
			})
			// Last: what was removed stays in the way of readers for a while.
			b.Run("create and remove", func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					g := numbered(n + i%1000)
					txn = s.NewTxn()
					txn.PutGrant(g, 0)
					commit()
					g.Revision = s.Revision()
					txn = s.NewTxn()
					txn.DeleteGrant(g)
					commit()
				}
			})
		})
	}
}
