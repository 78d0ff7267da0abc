package sigv4_test

import (
	"testing"

	"keymill/daemon/sigv4"
)

func TestVerifyDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates, and makes sync.Pool drop what it is given")
	}
	b := newBench(0)
	query := signedRequest()
	query.Query = "b=2&a=1&a=%20"
	query.Headers = append(query.Headers, [2]string{"a", "x  y"}, [2]string{"a", "z"})
	query.Sign(testKey, testTime)
	for _, r := range []*sigv4.Request{convert(signedRequest()), convert(query)} {
		var res sigv4.Result
		if n := testing.AllocsPerRun(1000, func() {
			if err := b.Verify(r, &res); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
	}
}
