package kms

import (
	"fmt"
	"testing"
)

// BenchmarkGrantRequests measures requests about grants from socket to socket, by
// how many grants the key has. CreateGrant waits for the disk.
func BenchmarkGrantRequests(b *testing.B) {
	for _, n := range []int{1, 1_000, 50_000} {
		b.Run(fmt.Sprint("grants=", n), func(b *testing.B) {
			h := newHarnessWith(b, profile(b, "base: none\nresources: {grants-per-key: none}\n"))
			key, _ := h.newKey(nil)
			h.fillGrants(h.ref(key), n)
			for _, c := range []struct{ name, op, body string }{
				{"CreateGrant", "CreateGrant", `{"KeyId":"` + key + `","GranteePrincipal":"` + userAlice + `","Operations":["Decrypt"]}`},
				{"CreateGrant, the same", "CreateGrant", `{"KeyId":"` + key + `","GranteePrincipal":"` + userAlice + `","Operations":["Decrypt"],"Name":"n"}`},
				{"ListGrants", "ListGrants", `{"KeyId":"` + key + `","Limit":100}`},
				{"ListGrants, one grantee", "ListGrants", `{"KeyId":"` + key + `","GranteePrincipal":"` + numberedGrant(h.ref(key), n/2+1).Grantee + `"}`},
			} {
				b.Run(c.name, func(b *testing.B) {
					request := h.request(c.op, c.body)
					h.serveConn(request, 3)
					b.ReportAllocs()
					b.ResetTimer()
					h.serveConn(request, b.N)
				})
			}
		})
	}
}
