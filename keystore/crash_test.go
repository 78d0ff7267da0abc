package keystore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"keymill/hsm/hsmtest"
)

// A model is what a store should contain, in the plainest form: one line of
// text per record that callers can see.
type model map[string]string

// observe reads a store into a model.
func observe(s *Store) (model, error) {
	m := make(model)
	for _, acct := range accounts {
		for after, has, more := (KeyID{}), false, true; more; has = true {
			var rows []KeyListing
			var err error
			if rows, more, err = s.ListKeys(acct, region, after, has, 3); err != nil {
				return nil, err
			}
			for _, row := range rows {
				after = row.ID
				ref := Ref{region, row.ID}
				k, err := s.Key(ref)
				if err != nil {
					return nil, err
				}
				m["key "+row.ID.String()] = fmt.Sprintf("%s %s %d", k.Account, k.Description, k.Revision)
				if p, rev, err := s.Policy(ref); err == nil {
					m["policy "+row.ID.String()] = fmt.Sprintf("%s %d", p, rev)
				} else if !errors.Is(err, ErrNotFound) {
					return nil, err
				}
				aliases, _, err := s.ListKeyAliases(ref, "", 1000)
				if err != nil {
					return nil, err
				}
				for _, a := range aliases {
					m["by target "+a.Account+a.Name] = row.ID.String()
				}
			}
		}
		aliases, _, err := s.ListAliases(acct, region, "", 1000)
		if err != nil {
			return nil, err
		}
		for _, a := range aliases {
			m["alias "+a.Account+a.Name] = fmt.Sprintf("%s %d", a.Target, a.Revision)
			m["by target "+a.Account+a.Name] += "!" // each must be found both ways
		}
		n, err := s.CountKeys(acct, region)
		if err != nil {
			return nil, err
		}
		m["count "+acct] = fmt.Sprint(n)
	}
	return m, nil
}

var accounts = []string{"000000000000", "111111111111"}

// A player makes random changes to keys of its own, so that it alone knows what
// they are, and keeps the history of states that its keys had.
type player struct {
	id     byte
	rng    *rand.Rand
	s      *Store
	mu     *sync.RWMutex // held for reading while states changes
	states []playerState // what was acknowledged, in order; then at most one that was not
}

type playerState struct {
	records map[string]string
	acked   bool
}

func (p *player) last() map[string]string { return p.states[len(p.states)-1].records }

// step makes one random change.
func (p *player) step() error {
	records := maps.Clone(p.last())
	n := byte(p.rng.IntN(3))
	k := testKey(1 + p.id*3 + n)
	k.Account = accounts[k.ID[0]%2]
	k.Description = fmt.Sprintf("%d.%d", p.id, len(p.states))
	ref := k.Ref()
	keyName, policy, alias := "key "+k.ID.String(), "policy "+k.ID.String(), "alias "+k.Account+"alias/"+k.ID.String()
	txn := p.s.NewTxn()
	txn.SetAudit([]byte(k.Description))
	const revision = " @" // replaced by the revision of the commit
	var deleteAll bool
	switch old, err := p.s.Key(ref); {
	case errors.Is(err, ErrNotFound):
		if _, ok := records[keyName]; ok {
			return fmt.Errorf("acknowledged %s was not found", keyName)
		}
		txn.PutKey(k, 0)
		// Long enough that histories cross flushes and log rotations.
		txn.PutMaterial(&Material{Ref: ref, Version: 1, Sealed: make([]byte, 4096), WrappedKEK: []byte{1}}, 0)
		txn.PutPolicy(ref, k.Description, 0)
		records[keyName] = k.Account + " " + k.Description + revision
		records[policy] = k.Description + revision
	case err != nil:
		return err
	case p.rng.IntN(4) == 0:
		txn.DeleteKey(old)
		deleteAll = true
	case p.rng.IntN(2) == 0:
		txn.PutKey(k, old.Revision)
		txn.PutPolicy(ref, k.Description, AnyRevision)
		records[keyName] = k.Account + " " + k.Description + revision
		records[policy] = k.Description + revision
	default:
		txn.ExpectKey(ref, old.Revision)
		txn.PutAlias(&Alias{Account: k.Account, Region: region, Name: "alias/" + k.ID.String(), Target: k.ID, Created: now, Updated: now}, AnyRevision)
		records[alias] = k.ID.String() + revision
	}
	if deleteAll {
		delete(records, keyName)
		delete(records, policy)
		delete(records, alias)
	}
	p.mu.RLock()
	p.states = append(p.states, playerState{records: records})
	p.mu.RUnlock()
	rev, err := txn.Commit(context.Background())
	if err == nil {
		p.mu.RLock()
		p.states[len(p.states)-1].acked = true
		for name, v := range records {
			records[name] = strings.Replace(v, revision, fmt.Sprintf(" %d", rev), 1)
		}
		p.mu.RUnlock()
	}
	return err
}

// check compares what a store has with what the player knows: the last
// acknowledged state, or the one after it that was under way.
func (p *player) check(m model) error {
	have := make(map[string]string)
	for n := range byte(3) {
		id := testKey(1 + p.id*3 + n).ID.String()
		for _, acct := range accounts {
			if v, ok := m["alias "+acct+"alias/"+id]; ok {
				have["alias "+acct+"alias/"+id] = v
				if m["by target "+acct+"alias/"+id] != id+"!" {
					return fmt.Errorf("alias indexes disagree: %q", m["by target "+acct+"alias/"+id])
				}
			}
		}
		for _, kind := range []string{"key ", "policy "} {
			if v, ok := m[kind+id]; ok {
				have[kind+id] = v
			}
		}
	}
	last := p.states[len(p.states)-1]
	if last.acked || len(p.states) == 1 {
		if d := cmp.Diff(last.records, have); d != "" {
			return fmt.Errorf("acknowledged (-) and found (+):\n%s", d)
		}
		return nil
	}
	before := p.states[len(p.states)-2]
	if cmp.Equal(before.records, have) {
		return nil
	}
	// The revision of the one under way is not known here: compare without.
	strip := func(in map[string]string) map[string]string {
		out := maps.Clone(in)
		for name, v := range out {
			if old, ok := before.records[name]; !ok || old != v {
				out[name] = v[:strings.LastIndexByte(v, ' ')]
			}
		}
		return out
	}
	if d := cmp.Diff(strip(last.records), strip(have)); d != "" {
		return fmt.Errorf("neither acknowledged nor under way (-), but found (+):\n%s", d)
	}
	return nil
}

func smallTables(o *pebble.Options) { o.MemTableSize = 64 << 10 }

// TestCrashes runs random histories of concurrent players on a file system that
// forgets what was not synced, at a random moment, several times in a row. After
// each crash everything acknowledged is there, what was under way is there
// completely or not at all, and the store verifies.
func TestCrashes(t *testing.T) {
	rounds := 40
	if raceEnabled {
		rounds = 8
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 7))
			root := hsmtest.NewMemory()
			fs := vfs.NewCrashableMem()
			players := make([]*player, 4)
			for i := range players {
				players[i] = &player{id: byte(i), rng: rand.New(rand.NewPCG(seed, uint64(i))), states: []playerState{{acked: true}}}
				players[i].states[0].records = map[string]string{}
			}
			for crash := range 3 {
				fs = crashOnce(t, rng, fs, root, players)
				s, err := Open(context.Background(), Options{Dir: "store", Root: root, fs: fs, tune: smallTables})
				if err != nil {
					t.Fatalf("crash %d: open: %v", crash, err)
				}
				m, err := observe(s)
				if err != nil {
					t.Fatalf("crash %d: %v", crash, err)
				}
				for _, p := range players {
					if err := p.check(m); err != nil {
						t.Errorf("crash %d, player %d: %v", crash, p.id, err)
					}
				}
				if err := s.Verify(context.Background(), nil); err != nil {
					t.Errorf("crash %d: verify: %v", crash, err)
				}
				checkCounts(t, m)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if t.Failed() {
					return
				}
				for _, p := range players { // go on from what is there
					p.states = []playerState{{records: p.found(m), acked: true}}
				}
			}
		})
	}
}

// found picks the player's records out of a model.
func (p *player) found(m model) map[string]string {
	out := make(map[string]string)
	for n := range byte(3) {
		id := testKey(1 + p.id*3 + n).ID.String()
		for name, v := range m {
			if strings.HasSuffix(name, id) && !strings.HasPrefix(name, "by target") {
				out[name] = v
			}
		}
	}
	return out
}

func checkCounts(t *testing.T, m model) {
	t.Helper()
	for _, acct := range accounts {
		n := 0
		for name, v := range m {
			if strings.HasPrefix(name, "key ") && strings.HasPrefix(v, acct) {
				n++
			}
		}
		if m["count "+acct] != fmt.Sprint(n) {
			t.Errorf("account %s has %d keys, counted %s", acct, n, m["count "+acct])
		}
	}
}

// crashOnce plays until a random number of commits is acknowledged, takes what
// the disk would hold at that moment, and returns it. What players learn after
// the moment does not count.
func crashOnce(t *testing.T, rng *rand.Rand, fs *vfs.MemFS, root *hsmtest.Memory, players []*player) *vfs.MemFS {
	t.Helper()
	s, err := Open(context.Background(), Options{Dir: "store", Root: root, fs: fs, tune: smallTables})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var (
		mu      sync.RWMutex
		stopped atomic.Bool
		wg      sync.WaitGroup
		once    sync.Once
	)
	target := s.Revision() + uint64(rng.IntN(120))
	reached := make(chan struct{})
	for _, p := range players {
		p.s, p.mu = s, &mu
		wg.Go(func() {
			for !stopped.Load() {
				if err := p.step(); err != nil {
					t.Errorf("player %d, step %d: %v", p.id, len(p.states), err)
					stopped.Store(true)
				}
				if stopped.Load() || s.Revision() >= target {
					once.Do(func() { close(reached) })
				}
			}
		})
	}
	<-reached
	// Whatever was noted as acknowledged by now was acknowledged before the
	// crash. What is acknowledged but not noted yet counts as under way.
	mu.Lock()
	stopped.Store(true)
	crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 0, 50, 100}[rng.IntN(4)], RNG: rng})
	frozen := make([][]playerState, len(players))
	for i, p := range players {
		frozen[i] = slices.Clone(p.states)
		last := &frozen[i][len(frozen[i])-1]
		last.records = maps.Clone(last.records)
	}
	mu.Unlock()
	wg.Wait()
	for i, p := range players {
		p.states = frozen[i]
	}
	return crashed
}
