package kms

import (
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keymill/daemon/quota"
)

// # Concurrent histories
//
// Many clients use a few keys at once, and each request is written down with when it
// began and when it was answered. Then each key's history is checked: there must be
// an order of its requests, each at some moment between its beginning and its answer,
// in which every answer is right. So an Encrypt that begins after DisableKey was
// answered fails until an EnableKey has begun; nobody gets new data keys of old
// material once a rotation was answered; and so on, for all at once.
//
// Time stands still while clients are at work, and moves between the phases; what
// falls due then happens beside the requests of the next phase. Each phase ends with
// a round of the scheduler alone, which must leave nothing.
//
// Related keys are checked apart, each with those requests to the other that changed
// it: what the records share is one commit, but no request looks at two regions.

// An event is a request and its answer.
type event struct {
	client       int
	op, region   string
	key          *shared
	arg          string
	begun, ended int64
	code         string
	material     string // that the answer names
	state        string // that the answer names
	joins        bool   // another rotation was under way at the same time
	beside       bool   // a round of the scheduler was
	phase        int
}

func (e *event) String() string {
	return fmt.Sprintf("%4d-%-4d client %d %s %s %s = %q %s %.8s", e.begun, e.ended, e.client, e.op, e.region, e.arg, e.code, e.state, e.material)
}

// A shared key is used by all clients.
type shared struct {
	name, id  string
	regions   []string // the first is the primary's at the beginning
	mortal    bool     // may really be deleted
	rotates   bool
	imported  args     // the request that imports its material; nil for others
	materials []string // in the order of their rotations

	mu    sync.Mutex
	blobs []string // guarded by mu
}

// A keyAt is what a key can be like at one moment.
type keyAt struct {
	state    string
	version  int // of materials
	primary  string
	due      bool // an automatic rotation
	missing  bool // imported material
	deletion int  // phase of ScheduleKeyDeletion
}

// after returns what the key of a region can be like after a request, nothing if its
// answer is wrong.
func (k keyAt) after(e *event, region string) (next []keyAt) {
	is := func(states ...string) bool { return slices.Contains(states, k.state) }
	to := func(state string) []keyAt { n := k; n.state = state; return []keyAt{n} }
	same := func(ok bool) []keyAt {
		if ok {
			return []keyAt{k}
		}
		return nil
	}
	rotated := k
	rotated.version++
	if e.region != region && e.region != "" { // a related key's
		switch {
		case e.code != "":
			return same(true)
		case e.op == "RotateKeyOnDemand" && e.joins:
			return []keyAt{k, rotated}
		case e.op == "RotateKeyOnDemand":
			return []keyAt{rotated}
		case e.op == "UpdatePrimaryRegion":
			n := k
			n.primary = e.arg
			return []keyAt{n}
		}
		return same(true)
	}
	if e.code == codeNotFound {
		return same(is("gone"))
	}
	if is("gone") && e.region != "" {
		return nil
	}
	disabled, invalid := e.code == codeDisabled && is("Disabled"), e.code == codeState
	switch e.op {
	case "EnableKey", "DisableKey":
		switch {
		case e.code == "" && is("Enabled", "Disabled"):
			return to(e.op[:strings.Index(e.op, "Key")] + "d")
		default:
			return same(invalid && is("PendingDeletion", "PendingImport"))
		}
	case "ScheduleKeyDeletion":
		if e.code == "" && !is("PendingDeletion") {
			n := k
			n.state, n.deletion = "PendingDeletion", e.phase
			return []keyAt{n}
		}
		return same(invalid && is("PendingDeletion"))
	case "CancelKeyDeletion":
		switch {
		case e.code == "" && is("PendingDeletion") && k.missing:
			return to("PendingImport")
		case e.code == "" && is("PendingDeletion"):
			return to("Disabled")
		}
		return same(invalid && !is("PendingDeletion"))
	case "DeleteImportedKeyMaterial":
		n := k
		if n.missing = true; !is("PendingDeletion") {
			n.state = "PendingImport"
		}
		if e.code == "" {
			return []keyAt{n}
		}
		return nil
	case "ImportKeyMaterial":
		n := k
		if n.missing = false; is("PendingImport") {
			n.state = "Enabled"
		}
		if e.code == "" && !is("PendingDeletion") {
			return []keyAt{n}
		}
		return same(invalid && is("PendingDeletion"))
	case "DescribeKey":
		return same(e.state == k.state && k.has(e))
	case "Encrypt", "Decrypt", "GenerateDataKey":
		switch {
		case e.code == "":
			return same(is("Enabled") && (e.op == "Decrypt" || k.has(e)))
		default:
			return same(disabled || invalid && is("PendingDeletion", "PendingImport"))
		}
	case "RotateKeyOnDemand":
		switch {
		case e.code == "" && is("Enabled") && k.primary == region:
			rotated.due = k.due
			if e.joins {
				return []keyAt{rotated, k}
			}
			return []keyAt{rotated}
		case e.joins && e.code != "": // who joins a rotation gets its outcome
			return same(true)
		case e.code == codeSoon:
			return same(is("Enabled") && k.primary == region && (k.due || e.beside))
		case e.code == codeUnsupported:
			return same(is("Enabled") && k.primary != region)
		}
		return same(disabled || invalid && is("PendingDeletion"))
	case "UpdatePrimaryRegion":
		switch {
		case e.code == "" && is("Enabled") && k.primary == region:
			n := k
			n.primary = e.arg
			return []keyAt{n}
		case e.code == codeUnsupported:
			return same(is("Enabled") && k.primary != region)
		case disabled:
			return same(true)
		}
		return same(is("Enabled") && k.primary == region || invalid && is("PendingDeletion")) // for the other key's state
	case "time":
		n := k
		n.due = e.key.rotates
		return []keyAt{n}
	case "round", "last round":
		next = []keyAt{k}
		must := false
		switch {
		case is("PendingDeletion") && e.key.mortal && k.deletion < e.phase:
			next, must = append(next, to("gone")...), true
		case k.due && (k.primary != region || is("Enabled")):
			rotated.due = false
			next, must = append(next, rotated), k.primary == region
		}
		if must && e.op == "last round" {
			next = next[1:]
		}
		return next
	}
	panic(e.op)
}

// has compares the material that an answer names.
func (k keyAt) has(e *event) bool {
	if e.material == "" {
		return true
	}
	return k.version < len(e.key.materials) && e.key.materials[k.version] == e.material
}

// explain looks for an order of the events of a key. It walks through beginnings and
// answers as they happened, with all that the key can be like at that moment: a state,
// and which of the requests under way have had their effect already. An event must
// have had it when it is answered. It returns the first that cannot have had.
func explain(events []*event, region string, begin keyAt) *event {
	type config struct {
		key  keyAt
		done uint64 // clients
	}
	type edge struct {
		at    int64
		event *event
		ends  bool
	}
	var edges []edge
	for _, e := range events {
		edges = append(edges, edge{e.begun, e, false}, edge{e.ended, e, true})
	}
	slices.SortFunc(edges, func(a, b edge) int { return int(a.at - b.at) })
	open := map[int]*event{}
	configs := map[config]bool{{key: begin}: true}
	for _, at := range edges {
		e := at.event
		if !at.ends {
			open[e.client] = e
			continue
		}
		kept, seen := map[config]bool{}, map[config]bool{}
		var walk func(c config)
		walk = func(c config) {
			switch {
			case seen[c]:
				return
			case c.done>>e.client&1 == 1:
				c.done &^= 1 << e.client
				kept[c] = true
				return
			}
			seen[c] = true
			for client, o := range open {
				if c.done>>client&1 == 1 {
					continue
				}
				for _, next := range c.key.after(o, region) {
					walk(config{next, c.done | 1<<client})
				}
			}
		}
		for c := range configs {
			walk(c)
		}
		delete(open, e.client)
		if configs = kept; len(configs) == 0 {
			return e
		}
	}
	return nil
}

// TestExplain: the check knows right histories from wrong ones.
func TestExplain(t *testing.T) {
	key := &shared{materials: []string{"a", "b"}}
	ev := func(client int, op string, begun, ended int64, code, material string) *event {
		return &event{client: client, op: op, region: "r", key: key, begun: begun, ended: ended, code: code, material: material}
	}
	for name, c := range map[string]struct {
		events []*event
		wrong  int // index of what is wrong, -1 for nothing
	}{
		"beside":         {[]*event{ev(1, "DisableKey", 1, 4, "", ""), ev(2, "Encrypt", 2, 3, "", "")}, -1},
		"beside, late":   {[]*event{ev(1, "DisableKey", 1, 4, "", ""), ev(2, "Encrypt", 2, 3, codeDisabled, "")}, -1},
		"after":          {[]*event{ev(1, "DisableKey", 1, 2, "", ""), ev(2, "Encrypt", 3, 4, "", "")}, 1},
		"back again":     {[]*event{ev(1, "DisableKey", 1, 4, "", ""), ev(2, "Encrypt", 2, 3, codeDisabled, ""), ev(3, "Encrypt", 5, 6, codeDisabled, "")}, -1},
		"seen, then not": {[]*event{ev(1, "DisableKey", 1, 9, "", ""), ev(2, "Encrypt", 2, 3, codeDisabled, ""), ev(3, "Encrypt", 5, 6, "", "")}, 2},
		"old material":   {[]*event{ev(1, "RotateKeyOnDemand", 1, 2, "", ""), ev(2, "GenerateDataKey", 3, 4, "", "a")}, 1},
		"new material":   {[]*event{ev(1, "RotateKeyOnDemand", 1, 2, "", ""), ev(2, "GenerateDataKey", 3, 4, "", "b")}, -1},
		"too early":      {[]*event{ev(2, "GenerateDataKey", 1, 2, "", "b"), ev(1, "RotateKeyOnDemand", 3, 4, "", "")}, 0},
		"no reason":      {[]*event{ev(1, "Encrypt", 1, 2, codeState, "")}, 0},
		"deleted": {[]*event{ev(1, "ScheduleKeyDeletion", 1, 2, "", ""), ev(2, "EnableKey", 3, 4, codeState, ""),
			ev(1, "CancelKeyDeletion", 5, 6, "", ""), ev(2, "EnableKey", 7, 10, "", ""), ev(1, "Encrypt", 8, 9, "", "")}, -1},
	} {
		var want *event
		if c.wrong >= 0 {
			want = c.events[c.wrong]
		}
		if got := explain(c.events, "r", keyAt{state: "Enabled", primary: "r"}); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// A crowd is clients of one service.
type crowd struct {
	*rig
	clock  atomic.Int64 // of the service, in nanoseconds
	ticks  atomic.Int64 // orders beginnings and answers
	keys   []*shared
	phase  int
	grants registers
	names  registers

	mu     sync.Mutex
	events []*event // guarded by mu
}

// A client sends one request after the other.
type client struct {
	*crowd
	*harness
	id int
	d  *rand.Rand
}

func (c *crowd) client(id int, seed uint64) *client {
	h := *c.rig.harness
	return &client{c, &h, id, rand.New(rand.NewPCG(seed, uint64(id)))}
}

// do sends a request about a key and writes it down.
func (c *client) do(op, region string, k *shared, in args, arg string) answer {
	e := &event{client: c.id, op: op, region: region, key: k, arg: arg, phase: c.phase}
	c.harness.key.Region = region
	e.begun = c.ticks.Add(1)
	a := c.call(op, in)
	e.ended = c.ticks.Add(1)
	e.code, e.material = a.code(), a.str("KeyMaterialId")
	if m, ok := a.fields["KeyMetadata"].(map[string]any); ok {
		e.state, e.material = m["KeyState"].(string), m["CurrentKeyMaterialId"].(string)
	}
	if op == "Decrypt" {
		e.material = ""
	}
	c.crowd.mu.Lock()
	c.events = append(c.events, e)
	c.crowd.mu.Unlock()
	return a
}

// step sends a request that dice choose.
func (c *client) step() {
	k := c.keys[c.d.IntN(len(c.keys))]
	region := k.regions[c.d.IntN(len(k.regions))]
	in := args{"KeyId": k.id}
	n := c.d.IntN(100)
	switch {
	case n < 12:
		c.do("EnableKey", region, k, in, "")
	case n < 20:
		c.do("DisableKey", region, k, in, "")
	case n < 24 && len(k.regions) == 1:
		in["PendingWindowInDays"] = 7
		c.do("ScheduleKeyDeletion", region, k, in, "")
	case n < 32 && len(k.regions) == 1:
		c.do("CancelKeyDeletion", region, k, in, "")
	case n < 40 && k.rotates:
		c.do("RotateKeyOnDemand", region, k, in, "")
	case n < 44 && len(k.regions) > 1:
		to := k.regions[c.d.IntN(2)]
		if to != region {
			in["PrimaryRegion"] = to
			c.do("UpdatePrimaryRegion", region, k, in, to)
		}
	case n < 36 && k.imported != nil:
		c.do("DeleteImportedKeyMaterial", region, k, in, "")
	case n < 44 && k.imported != nil:
		c.do("ImportKeyMaterial", region, k, k.imported, "")
	case n < 56:
		in["Plaintext"] = b64(k.name)
		if a := c.do("Encrypt", region, k, in, ""); a.status == 200 {
			k.mu.Lock()
			k.blobs = append(k.blobs, a.str("CiphertextBlob"))
			k.mu.Unlock()
		}
	case n < 66:
		in["NumberOfBytes"] = 16
		c.do("GenerateDataKey", region, k, in, "")
	case n < 78:
		k.mu.Lock()
		in["CiphertextBlob"] = k.blobs[c.d.IntN(len(k.blobs))]
		k.mu.Unlock()
		if a := c.do("Decrypt", region, k, in, ""); a.status == 200 && a.str("Plaintext") != b64(k.name) {
			c.Fatalf("a ciphertext of %s was decrypted to %s", k.name, a)
		}
	case n < 84:
		c.do("DescribeKey", region, k, in, "")
	case n < 92:
		c.grant(c.keys[0])
	default:
		c.alias()
	}
}

// work runs clients at the same time, each for some steps, and a scheduler.
func (c *crowd) work(t *testing.T, clients, steps int, seed uint64) {
	var wg sync.WaitGroup
	failed := make(chan any, clients+1)
	run := func(f func()) {
		wg.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					failed <- v
				}
			}()
			f()
		})
	}
	for id := range clients {
		one := c.client(id+1, seed)
		run(func() {
			for range steps {
				one.step()
			}
		})
	}
	run(func() { c.round("round") })
	wg.Wait()
	close(failed)
	for v := range failed {
		t.Fatal(v)
	}
}

// round lets happen what is due. It is an event of every key.
func (c *crowd) round(op string) {
	begun := c.ticks.Add(1)
	if err := c.svc.runDue(c.conf.Clock()); err != nil {
		c.Fatal(err)
	}
	c.everywhere(op, begun, c.ticks.Add(1))
}

func (c *crowd) everywhere(op string, begun, ended int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.keys {
		c.events = append(c.events, &event{client: 0, op: op, key: k, begun: begun, ended: ended, phase: c.phase})
	}
}

// settle ends a phase: keys that are to live on are taken back from deletion, and what
// is due happens.
func (c *crowd) settle() {
	one := c.client(1, 0)
	for _, k := range c.keys {
		if k.mortal {
			continue
		}
		for _, region := range k.regions {
			if a := one.do("DescribeKey", region, k, args{"KeyId": k.id}, ""); strings.Contains(a.body, "PendingDeletion") {
				one.do("CancelKeyDeletion", region, k, args{"KeyId": k.id}, "")
			}
			if k.imported != nil {
				one.do("ImportKeyMaterial", region, k, k.imported, "")
			}
			one.do("EnableKey", region, k, args{"KeyId": k.id}, "")
		}
	}
	c.round("last round")
}

// pass moves the clock by more than a rotation's period and every waiting period.
func (c *crowd) pass() {
	c.clock.Add(int64(91 * day))
	c.now = c.conf.Clock()
	c.phase++
	begun := c.ticks.Add(1)
	c.everywhere("time", begun, c.ticks.Add(1))
	for _, k := range c.keys {
		c.wrap(k)
	}
}

// wrap prepares the import of a key's material, for a day.
func (c *crowd) wrap(k *shared) {
	if k.imported == nil {
		return
	}
	r := c.must("GetParametersForImport", args{"KeyId": k.id, "WrappingAlgorithm": "SM2PKE", "WrappingKeySpec": "SM2"})
	p := parameters{"SM2PKE", r.str("ImportToken"), fromBase64(c.harness, r.str("PublicKey"))}
	k.imported = p.wrapped(c.harness, k.id, filled(9), nil)
}

func newCrowd(t *testing.T, of setting) *crowd {
	c := &crowd{}
	c.clock.Store(time.Date(2026, 5, 4, 3, 2, 1, 987654321, time.UTC).UnixNano())
	limits := quota.None()
	limits.Resources.AliasesPerKey, limits.Resources.OnDemandRotations = 1000, 0
	c.rig = newRig(t, of, limits, func() time.Time { return time.Unix(0, c.clock.Load()).UTC() })
	c.grants.name, c.names.name = "grant", "alias"
	add := func(k *shared, in args) {
		m := c.must("CreateKey", in).fields["KeyMetadata"].(map[string]any)
		k.id = m["KeyId"].(string)
		k.regions = append([]string{testRegion}, k.regions...)
		c.keys = append(c.keys, k)
		if k.imported != nil {
			c.wrap(k)
			c.must("ImportKeyMaterial", k.imported)
		}
		if k.rotates {
			c.must("EnableKeyRotation", args{"KeyId": k.id, "RotationPeriodInDays": 90})
		}
		for _, region := range k.regions[1:] {
			c.must("ReplicateKey", args{"KeyId": k.id, "ReplicaRegion": region})
		}
		k.blobs = []string{c.must("Encrypt", args{"KeyId": k.id, "Plaintext": b64(k.name)}).str("CiphertextBlob")}
	}
	add(&shared{name: "rotating", rotates: true}, nil)
	add(&shared{name: "mortal", mortal: true}, nil)
	add(&shared{name: "imported", imported: args{}}, args{"Origin": "EXTERNAL"})
	add(&shared{name: "related", rotates: true, regions: []string{replicaRegion}}, args{"MultiRegion": true})
	return c
}

// TestConcurrentHistories: whatever many clients do at once, there is an order that
// explains every answer.
func TestConcurrentHistories(t *testing.T) {
	count, from, _, budget := historySeeds(t, 6)
	began := time.Now()
	for i := range count {
		if budget > 0 && i >= 2 && time.Since(began) > budget/2 {
			break
		}
		seed := from + i
		t.Run(fmt.Sprint(seed), func(t *testing.T) { concurrentHistory(t, settings[seed%uint64(len(settings))], seed) })
	}
}

func concurrentHistory(t *testing.T, of setting, seed uint64) {
	c := newCrowd(t, of)
	defer c.rig.close()
	defer func() {
		if v := recover(); v != nil {
			t.Fatal(v)
		}
	}()
	const clients, steps, phases = 6, 20, 5
	for range phases {
		c.work(t, clients, steps, seed+uint64(c.phase)<<32)
		c.settle()
		c.pass()
	}
	if err := c.store.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
	for _, k := range c.keys {
		c.checkKey(t, k)
	}
	c.grants.check(t)
	c.names.check(t)
	if text := c.logs.String(); text != "" {
		t.Errorf("logged:\n%s", text)
	}
}

// checkKey checks the history of a key, and that all its ciphertexts open at the end.
func (c *crowd) checkKey(t *testing.T, k *shared) {
	if !k.mortal {
		for _, e := range c.listed(k.id, true, 1000) {
			k.materials = append(k.materials, e["KeyMaterialId"].(string))
		}
		for _, region := range k.regions {
			c.key.Region = region
			for _, blob := range k.blobs {
				if a := c.must("Decrypt", args{"CiphertextBlob": blob}); a.str("Plaintext") != b64(k.name) {
					t.Errorf("%s: %s", k.name, a)
				}
			}
		}
		c.key.Region = testRegion
	}
	var events []*event
	for _, e := range c.events {
		if e.key != k {
			continue
		}
		if k.mortal { // it has one material, and nobody to ask for it at the end
			e.material = ""
		}
		for _, o := range c.events {
			if o.key == k && o != e && o.begun < e.ended && e.begun < o.ended {
				e.joins = e.joins || o.op == "RotateKeyOnDemand" && e.op == o.op
				e.beside = e.beside || o.op == "round"
			}
		}
		events = append(events, e)
	}
	for _, region := range k.regions {
		if wrong := explain(events, region, keyAt{state: "Enabled", primary: testRegion}); wrong != nil {
			var text []string
			for _, e := range slices.SortedFunc(slices.Values(events), func(a, b *event) int { return int(a.begun - b.begun) }) {
				if e.ended > wrong.begun-60 && e.begun <= wrong.ended {
					text = append(text, e.String())
				}
			}
			t.Errorf("key %s in %s: no state of the key explains\n%s\nafter\n%s", k.name, region, wrong, strings.Join(text, "\n"))
		}
	}
}

// registers are values that come and go, such as grants, with who saw them when. A
// value must be seen by whoever begins to look after it was answered for, and until
// somebody begins to remove it; and not by those who look after it was removed.
type registers struct {
	name string
	mu   sync.Mutex
	all  map[string]*register // guarded by mu
	seen []sight              // guarded by mu
}

type register struct{ made, removed [2]int64 } // 0 is never

type sight struct {
	begun, ended int64
	only         string
	values       []string
}

func (r *registers) of(value string) *register {
	if r.all == nil {
		r.all = map[string]*register{}
	}
	if r.all[value] == nil {
		r.all[value] = new(register)
	}
	return r.all[value]
}

func (r *registers) made(value string, begun, ended int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(value).made = [2]int64{begun, ended}
}

func (r *registers) removed(value string, begun, ended int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(value).removed = [2]int64{begun, ended}
}

// saw keeps what somebody saw who looked for all, or for one value only.
func (r *registers) saw(begun, ended int64, only string, values ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, sight{begun, ended, only, values})
}

func (r *registers) check(t *testing.T) {
	for _, s := range r.seen {
		for value, g := range r.all {
			if s.only != "" && s.only != value {
				continue
			}
			there := slices.Contains(s.values, value)
			gone := g.removed[1] != 0 && g.removed[1] < s.begun || g.made[0] > s.ended
			stays := g.made[1] < s.begun && (g.removed[0] == 0 || g.removed[0] > s.ended)
			if there && gone || !there && stays {
				t.Errorf("%s %.12s, made %v, removed %v: seen in %d-%d: %v", r.name, value, g.made, g.removed, s.begun, s.ended, there)
			}
		}
	}
}

// grant makes, removes or lists grants of a key.
func (c *client) grant(k *shared) {
	c.harness.key.Region = testRegion
	begun := c.ticks.Add(1)
	switch c.d.IntN(3) {
	case 0:
		if a := c.call("CreateGrant", grantArgs(k.id, nil)); a.status == 200 {
			c.crowd.grants.made(a.str("GrantId"), begun, c.ticks.Add(1))
		}
	default:
		var ids []string
		for _, g := range c.harness.grants("ListGrants", args{"KeyId": k.id}) {
			ids = append(ids, g["GrantId"].(string))
		}
		c.crowd.grants.saw(begun, c.ticks.Add(1), "", ids...)
		if len(ids) == 0 || c.d.IntN(2) == 0 {
			return
		}
		id := ids[c.d.IntN(len(ids))]
		begun = c.ticks.Add(1)
		if a := c.call("RevokeGrant", args{"KeyId": k.id, "GrantId": id}); a.status == 200 {
			c.crowd.grants.removed(id, begun, c.ticks.Add(1))
		} else if a.code() != codeNotFound {
			c.Fatal(a)
		}
	}
}

// alias makes, removes or uses aliases of the key that is used most. Each has a name
// that nobody had before.
func (c *client) alias() {
	c.harness.key.Region = testRegion
	k := c.keys[0]
	begun := c.ticks.Add(1)
	if c.d.IntN(3) == 0 {
		name := aliasPrefix + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d", begun))
		if a := c.call("CreateAlias", args{"AliasName": name, "TargetKeyId": k.id}); a.status == 200 {
			c.names.made(name, begun, c.ticks.Add(1))
		}
		return
	}
	var names []string
	for _, e := range c.call("ListAliases", args{"KeyId": k.id, "Limit": 100}).fields["Aliases"].([]any) {
		names = append(names, e.(map[string]any)["AliasName"].(string))
	}
	c.names.saw(begun, c.ticks.Add(1), "", names...)
	if len(names) == 0 {
		return
	}
	name := names[c.d.IntN(len(names))]
	begun = c.ticks.Add(1)
	if c.d.IntN(2) == 0 {
		if a := c.call("DeleteAlias", args{"AliasName": name}); a.status == 200 {
			c.names.removed(name, begun, c.ticks.Add(1))
		}
		return
	}
	if a := c.call("DescribeKey", args{"KeyId": name}); a.status == 200 {
		c.names.saw(begun, c.ticks.Add(1), name, name)
	} else {
		c.names.saw(begun, c.ticks.Add(1), name)
	}
}
