package quota

import (
	"fmt"
	"testing"
	"time"

	"keymill/daemon/wire"
)

var testStart = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// takeAll counts what is admitted at one moment.
func takeAll(take func() bool) (n int) {
	for n < 2_000_000 && take() {
		n++
	}
	return n
}

// TestAWS holds every rate of the table against the reference: at one moment a
// second's worth passes, at least one unit, and no more.
func TestAWS(t *testing.T) {
	l := New(AWS(), testStart)
	for _, tt := range []struct {
		region string
		class  Class
		want   int
	}{
		{"us-east-1", Symmetric, 100_000},
		{"us-west-2", Symmetric, 100_000},
		{"eu-west-1", Symmetric, 100_000},
		{"us-east-2", Symmetric, 20_000},
		{"eu-west-2", Symmetric, 20_000},
		{"ap-northeast-1", Symmetric, 20_000},
		{"eu-north-1", Symmetric, 10_000},
		{"cn-north-1", Symmetric, 10_000},
		{"us-east-1", RSA, 1000},
		{"us-east-1", ECC, 1000},
		{"us-east-1", MLDSA, 1000},
		{"us-east-1", Pair("ECC_NIST_P256"), 100},
		{"us-east-1", Pair("ECC_NIST_P384"), 100},
		{"us-east-1", Pair("ECC_NIST_P521"), 100},
		{"us-east-1", Pair("ECC_SECG_P256K1"), 100},
		{"us-east-1", Pair("ECC_NIST_EDWARDS25519"), 100},
		{"us-east-1", Pair("RSA_2048"), 20},
		{"us-east-1", Pair("RSA_3072"), 4},
		{"us-east-1", Pair("RSA_4096"), 1},
		{"cn-north-1", Pair("ECC_NIST_P256"), 100},
		{"cn-north-1", Pair("RSA_2048"), 1},
		{"cn-northwest-1", Pair("RSA_3072"), 1}, // 0.5
		{"cn-northwest-1", Pair("RSA_4096"), 1}, // 0.1
		{"cn-northwest-1", Pair("SM2"), 25},
		{"us-east-1", Of(wire.OpCreateKey), 5},
		{"us-east-1", Of(wire.OpDescribeKey), 2000},
		{"us-east-1", Of(wire.OpGetParametersForImport), 1},
		{"us-east-1", Of(wire.OpRevokeGrant), 50},
	} {
		account := fmt.Sprintf("%012d", tt.class)
		a := l.Account(account, tt.region)
		if got := takeAll(func() bool { return a.Take(tt.class, 1, testStart) }); got != tt.want {
			t.Errorf("%s in %s: %d at once, want %d", tt.class, tt.region, got, tt.want)
		}
		if int(a.Burst(tt.class)) != tt.want {
			t.Errorf("%s in %s: burst %d", tt.class, tt.region, a.Burst(tt.class))
		}
	}
}

// Rates below one a second: one, and then the wait.
func TestSlowRates(t *testing.T) {
	a := New(AWS(), testStart).Account("111122223333", "cn-north-1")
	for _, tt := range []struct {
		spec string
		wait time.Duration
	}{{"RSA_2048", time.Second}, {"RSA_3072", 2 * time.Second}, {"RSA_4096", 10 * time.Second}} {
		c := Pair(tt.spec)
		if !a.Take(c, 1, testStart) {
			t.Errorf("%s: the first was refused", tt.spec)
		}
		for i := range 2 {
			at := testStart.Add(time.Duration(i+1) * tt.wait)
			if a.Take(c, 1, at.Add(-time.Nanosecond)) {
				t.Errorf("%s: admitted a nanosecond before %v", tt.spec, tt.wait)
			}
			if !a.Take(c, 1, at) {
				t.Errorf("%s: refused after %v", tt.spec, tt.wait)
			}
		}
	}
}

// Every operation has a quota, in exactly one way.
func TestClassesCoverOperations(t *testing.T) {
	p := AWS()
	seen := map[Class]bool{NoClass: true}
	for op := wire.Op(1); op <= wire.NumOps; op++ {
		c := Of(op)
		if cryptographic(op) != (c == NoClass) {
			t.Errorf("%s: class %d", op, c)
			continue
		}
		if c == NoClass {
			continue
		}
		if seen[c] {
			t.Errorf("%s shares its class", op)
		}
		seen[c] = true
		if p.Requests[c] == 0 {
			t.Errorf("%s has no quota", op)
		}
		if c.String() != op.String() || classes[op.String()] != c {
			t.Errorf("%s: named %q", op, c)
		}
	}
	for c := Symmetric; c < operations; c++ {
		if p.Requests[c] == 0 || c.String() == "" || classes[c.String()] != c {
			t.Errorf("class %d: %q, %v", c, c, p.Requests[c])
		}
	}
	if Of(wire.OpInvalid) != NoClass || Of(wire.NumOps+1) != NoClass || Pair("ML_DSA_44") != NoClass || Pair("") != NoClass {
		t.Error("something has a class that has none")
	}
}

func TestElsewhere(t *testing.T) {
	for op := wire.Op(0); op <= wire.NumOps; op++ {
		c, n := Elsewhere(op)
		switch op {
		case wire.OpReplicateKey:
			if c != Of(wire.OpCreateKey) || n != 2 {
				t.Errorf("ReplicateKey: %d of %s", n, c)
			}
		case wire.OpUpdatePrimaryRegion:
			if c != Of(op) || n != 1 {
				t.Errorf("UpdatePrimaryRegion: %d of %s", n, c)
			}
		default:
			if n != 0 {
				t.Errorf("%s: %d of %s", op, n, c)
			}
		}
	}
}

// Buckets of accounts, regions, classes, stores and keys are their own.
func TestBucketsAreSeparate(t *testing.T) {
	p := None()
	p.Requests[RSA], p.Requests[ECC] = 2, 3
	p.CustomKeyStore = 4
	p.PerKey, p.PerKeyBurst = 5, 6
	l := New(p, testStart)
	for _, account := range []string{"111122223333", "444455556666"} {
		for _, region := range []string{"us-east-1", "eu-west-1"} {
			take := func(c Class) func() bool {
				return func() bool { return l.Account(account, region).Take(c, 1, testStart) }
			}
			if got := takeAll(take(RSA)); got != 2 {
				t.Errorf("%s %s: RSA %d", account, region, got)
			}
			if got := takeAll(take(ECC)); got != 3 {
				t.Errorf("%s %s: ECC %d", account, region, got)
			}
			if !l.Account(account, region).Take(MLDSA, 1<<40, testStart) {
				t.Errorf("%s %s: ML-DSA has a limit", account, region)
			}
		}
	}
	for _, id := range []string{"cks-1", "cks-2"} {
		if got := takeAll(func() bool { return l.CustomKeyStore(id).Take(1, testStart) }); got != 4 {
			t.Errorf("%s: %d", id, got)
		}
	}
	for range 2 {
		b := l.NewKeyBucket()
		if got := takeAll(func() bool { return b.Take(1, testStart) }); got != 6 {
			t.Errorf("key: %d", got)
		}
		if b.Take(1, testStart.Add(199*time.Millisecond)) || !b.Take(1, testStart.Add(200*time.Millisecond)) {
			t.Error("key: not 5 a second")
		}
	}
}

func TestNoneHasNoBuckets(t *testing.T) {
	for _, l := range []*Limiter{New(nil, testStart), New(None(), testStart)} {
		if l.Account("111122223333", "us-east-1") != nil || l.NewKeyBucket() != nil || l.CustomKeyStore("cks-1") != nil {
			t.Error("a bucket without a limit")
		}
		want := Resources{AliasesPerKey: 50, GrantsPerKey: 50_000, OnDemandRotations: 25, PolicyBytes: 32_768, TagsPerKey: 50}
		if *l.Resources() != want {
			t.Errorf("resources %+v", *l.Resources())
		}
	}
	// A region of its own is enough for there to be buckets.
	p := None()
	p.region("eu-west-1").Rates[RSA] = 1
	if New(p, testStart).Account("111122223333", "eu-west-1") == nil {
		t.Error("no bucket for a limit in one region")
	}
}

// The table of accounts is bounded, whatever asks.
func TestAccountsAreBounded(t *testing.T) {
	l := New(AWS(), testStart)
	for i := range maxAccounts + 100 {
		l.Account(fmt.Sprintf("%012d", i), "us-east-1")
	}
	if n := l.accounts.Len(); n != maxAccounts {
		t.Errorf("%d accounts kept", n)
	}
}

// Accounts that share a slot of the fast way in keep their own buckets.
func TestSlotsCollide(t *testing.T) {
	p := None()
	p.Requests[RSA] = 10
	l := New(p, testStart)
	first := "000000000000"
	second := ""
	for i := 1; second == ""; i++ {
		if a := fmt.Sprintf("%012d", i); l.slot(a, "us-east-1") == l.slot(first, "us-east-1") {
			second = a
		}
	}
	taken := map[string]int{}
	for range 20 {
		for _, a := range []string{first, second} {
			if l.Account(a, "us-east-1").Take(RSA, 1, testStart) {
				taken[a]++
			}
		}
	}
	if taken[first] != 10 || taken[second] != 10 {
		t.Errorf("taken %v, 10 each may pass", taken)
	}
	l.Account("", "") // names too short to tell apart have a slot, too
}

func TestRateOfRegions(t *testing.T) {
	p := None()
	p.Requests[RSA] = 1
	p.region("us-*").Rates[RSA] = 2
	p.region("us-gov-*").Rates[RSA] = 3
	p.region("us-gov-west-1").Rates[RSA] = 4
	p.region("us-gov-west-1").Rates[ECC] = 5
	p.region("eu-west-1").Rates[RSA] = 0
	for region, want := range map[string]Rate{
		"ap-south-1": 1, "us-east-1": 2, "us-gov-east-1": 3, "us-gov-west-1": 4, "us-gov-west-2": 3, "eu-west-1": 0, "eu-west-2": 1, "us-": 2,
	} {
		if got := p.Rate(region, RSA); got != want {
			t.Errorf("%s: %v, want %v", region, got, want)
		}
	}
	if p.Rate("us-gov-west-1", ECC) != 5 || p.Rate("us-gov-west-2", ECC) != 0 {
		t.Error("another class")
	}
}

func TestThrottled(t *testing.T) {
	const want = `{"__type":"ThrottlingException","message":"You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."}`
	if e := Throttled(); e.Status != 400 || string(e.AppendJSON(nil)) != want {
		t.Errorf("%d %s", e.Status, e.AppendJSON(nil))
	}
}

func TestTakeAllocatesNothing(t *testing.T) {
	l := New(AWS(), testStart)
	key := l.NewKeyBucket()
	now := testStart
	got := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		if !l.Account("111122223333", "us-east-1").Take(Symmetric, 1, now) || !key.Take(1, now) || !l.CustomKeyStore("cks-1").Take(1, now) {
			t.Fatal("refused")
		}
		if l.Account("111122223333", "us-east-1").Take(Symmetric, 1_000_000, now) || Throttled() == nil {
			t.Fatal("admitted")
		}
	})
	if got != 0 {
		t.Errorf("%v allocations", got)
	}
}
