package wire_test

import (
	"math/rand/v2"
	"testing"

	"keymill/daemon/wire"
	"keymill/daemon/wire/reftest"
)

// TestDifferential compares decoder, validator and request encoder of every
// operation with the slow oracle, on random bodies with and without faults.
func TestDifferential(t *testing.T) {
	m, err := reftest.Load()
	if err != nil {
		t.Fatal(err)
	}
	var d wire.Decoder
	for _, faults := range []int{0, 15, 80} {
		s := reftest.Sampler{M: m, R: rand.New(rand.NewPCG(7, uint64(faults))), Faults: faults}
		accepted := 0
		for op := wire.Op(1); op <= wire.NumOps; op++ {
			for range 150 {
				body := s.Body(op.String())
				if err := reftest.Check(op, &d, body); err != nil {
					t.Fatalf("%v %q: %v", op, body, err)
				}
				if d.Decode(wire.NewInput(op), body) == nil {
					accepted++
				}
			}
		}
		total := 150 * wire.NumOps
		t.Logf("faults %d: %d of %d accepted", faults, accepted, total)
		if accepted < total/10 || faults == 0 && accepted < total*3/4 || faults > 0 && accepted > total*99/100 {
			t.Errorf("faults %d: %d of %d bodies accepted; the sampler is out of balance", faults, accepted, total)
		}
	}
}
