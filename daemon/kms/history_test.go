package kms

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/valyala/fasthttp/fasthttputil"

	"keymill/daemon/quota"
	"keymill/daemon/sigv4/sigv4test"
	"keymill/engine"
	"keymill/hsm/hsmtest"
	"keymill/keystore"
	"keymill/keystore/keystoretest"
)

// # Histories
//
// A history is a list of steps: requests of random kinds for random keys, steps of the
// clock, rounds of the scheduler, restarts, crashes. It is played against a service
// and against the model (history_model_test.go) at the same time. Every answer must
// be the one that the model predicts, and now and then, and at the end, everything
// that can be read must be what the model says: all lists, all metadata, and that
// every ciphertext ever made opens where its key can be used, and nowhere else.
//
// A step has a seed of its own, and does what that and the state of the model say. So
// steps can be left out: when a history fails, the test looks for a short part of it
// that fails too, and prints that with the command that plays it again.
//
//	KEYMILL_TEST_SEED=7            plays the history with that seed only
//	KEYMILL_TEST_STEPS=3,17,40     and of it these steps only
//	KEYMILL_TEST_HISTORIES=5000    plays so many, from that seed on, or without one
//	                               with seeds that nobody has seen
//	KEYMILL_TEST_LENGTH=300        of so many steps each

const (
	// histories is how many are played without being asked for more: a number for
	// every day. Their seeds are always the same.
	histories     = 240
	historyLength = 60
	// historyBudget ends a run that was not asked for on a slow machine.
	historyBudget = 12 * time.Second
)

// A historyStep is an entry of stepKinds and a seed.
type historyStep struct {
	kind int
	seed uint64
}

// A history is steps, and the keys that they have to do with. Each has a theme and
// does without some kinds of steps: histories that are all like the average of them
// would never get deep into anything.
type history struct {
	steps    []historyStep
	mostKeys int // at the same time
	kinds    []*mspec
	origins  []string
	multi    int // how many of a hundred keys are multi-Region keys
}

// themes are what a history may be about, besides everything: steps that it has many
// times more of, and what keys it has.
var themes = []struct {
	about   []string
	origins []string
	multi   int
	kinds   []*mspec
}{
	{nil, []string{originLocal, originExternal}, 30, []*mspec{specSymmetric, specSymmetric, specHMAC, specP256, specSM2, specMLDSA}},
	{nil, []string{originLocal, originExternal}, 50, []*mspec{specSymmetric}},
	{[]string{"EnableKeyRotation", "RotateKeyOnDemand", "time passes", "scheduler", "GenerateDataKey"}, []string{originLocal}, 0, []*mspec{specSymmetric}},
	{[]string{"EnableKeyRotation", "RotateKeyOnDemand", "time passes", "scheduler", "ReplicateKey", "UpdatePrimaryRegion"}, []string{originLocal}, 100, []*mspec{specSymmetric}},
	{[]string{"ImportKeyMaterial", "DeleteImportedKeyMaterial", "RotateKeyOnDemand", "time passes", "scheduler"}, []string{originExternal}, 0, []*mspec{specSymmetric}},
	{[]string{"ImportKeyMaterial", "RotateKeyOnDemand", "ReplicateKey", "UpdatePrimaryRegion", "DeleteImportedKeyMaterial"}, []string{originExternal}, 100, []*mspec{specSymmetric}},
	{[]string{"ImportKeyMaterial", "ReplicateKey", "ScheduleKeyDeletion", "time passes", "scheduler"}, []string{originExternal}, 100, []*mspec{specSymmetric}},
	{[]string{"CreateAlias", "UpdateAlias", "DeleteAlias", "Encrypt", "restart"}, []string{originLocal}, 0, []*mspec{specSymmetric, specSymmetric, specSM2}},
	{[]string{"CreateGrant", "RevokeGrant", "RetireGrant", "TagResource", "one key"}, []string{originLocal}, 30, []*mspec{specSymmetric, specP256}},
	{[]string{"ScheduleKeyDeletion", "CancelKeyDeletion", "ReplicateKey", "time passes", "scheduler"}, []string{originLocal}, 100, []*mspec{specSymmetric, specHMAC}},
}

// newHistory makes a history.
func newHistory(seed uint64, length int) *history {
	d := rand.New(rand.NewPCG(seed, 1))
	theme := themes[seed%uint64(len(themes))]
	h := &history{
		steps: make([]historyStep, length), mostKeys: []int{1, 2, 3, 4, 6}[d.IntN(5)],
		origins: theme.origins, multi: theme.multi, kinds: theme.kinds,
	}
	weights, total := make([]int, len(stepKinds)), 0
	for i, k := range stepKinds {
		switch {
		case slices.Contains(theme.about, k.name):
			weights[i] = 5 * max(k.weight, 3)
		case k.always:
			weights[i] = k.weight
		default:
			weights[i] = k.weight * []int{0, 1, 1, 2}[d.IntN(4)]
		}
		total += weights[i]
	}
	for i := range h.steps {
		s := &h.steps[i]
		for n := d.IntN(total); weights[s.kind] <= n; s.kind++ {
			n -= weights[s.kind]
		}
		s.seed = d.Uint64()
		if i < min(h.mostKeys, 3) {
			s.kind = 0 // begin with some keys
		}
	}
	return h
}

// part returns the history of only some steps.
func (h *history) part(indexes []int) *history {
	part := *h
	part.steps = make([]historyStep, len(indexes))
	for i, n := range indexes {
		part.steps[i] = h.steps[n]
	}
	return &part
}

// A setting is what must make no difference to any answer.
type setting struct {
	name     string
	keyCache int // of the service; 0 is its default
	procs    int // GOMAXPROCS; 0 is as it is
	heavy    int // threads for heavy work
}

var settings = []setting{
	{name: "default"},
	{name: "cache of 1", keyCache: 1},
	{name: "cache of 2, 1 processor", keyCache: 2, procs: 1},
	{name: "cache of 16, 4 processors, 3 heavy", keyCache: 16, procs: 4, heavy: 3},
}

// A rig is a harness on a file system in memory, which can be restarted and can
// crash. It ends a history at the first failure.
type rig struct {
	*harness
	fs   *keystoretest.FS
	told []string
	logs logged
}

// logged keeps what the service logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// failures are what a rig's helpers fail with, instead of ending the test.
type failures struct{ testing.TB }

type historyFailure string

func (f failures) Helper()                   {}
func (f failures) Logf(string, ...any)       {}
func (f failures) Error(a ...any)            { panic(historyFailure(fmt.Sprint(a...))) }
func (f failures) Fatal(a ...any)            { panic(historyFailure(fmt.Sprint(a...))) }
func (f failures) Errorf(t string, a ...any) { panic(historyFailure(fmt.Sprintf(t, a...))) }
func (f failures) Fatalf(t string, a ...any) { panic(historyFailure(fmt.Sprintf(t, a...))) }

func newRig(t testing.TB, of setting, limits *quota.Profile, clock func() time.Time) *rig {
	r := &rig{fs: keystoretest.NewFS(), harness: &harness{
		TB:   failures{t},
		root: hsmtest.NewMemory(),
		key:  sigv4test.Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "not-a-secret-but-a-test-fixture-0123456789", Region: testRegion, Service: "kms"},
		now:  time.Date(2026, 5, 4, 3, 2, 1, 987654321, time.UTC),
	}}
	if clock == nil {
		clock = func() time.Time { return r.now }
	}
	r.conf = Config{
		Account: testAccount, Region: testRegion, Regions: historyRegions[1:], Quota: limits, Clock: clock,
		Logger: slog.New(slog.NewTextHandler(&r.logs, &slog.HandlerOptions{Level: slog.LevelError})), KeyCache: of.keyCache, HeavyWorkers: of.heavy,
	}
	r.open()
	tx := r.store.NewTxn()
	tx.PutPrincipal(&keystore.Principal{ID: testAccount, Account: testAccount, ARN: rootARN, Root: true}, 0)
	tx.PutAccessKey(&keystore.AccessKey{ID: r.key.ID, Account: testAccount, PrincipalID: testAccount, Secret: []byte(r.key.Secret), Active: true, Created: r.now}, 0)
	if err := commit(tx); err != nil {
		t.Fatal(err)
	}
	return r
}

// open opens the store and begins a service on it.
func (r *rig) open() {
	var err error
	options := keystore.Options{Dir: "store", Root: r.root, Clock: r.conf.Clock, CacheBytes: 1 << 20}
	if r.store, err = keystore.Open(context.Background(), options.WithFS(r.fs)); err != nil {
		r.Fatal(err)
	}
	r.conf.Store = r.store
	r.begin()
}

func (r *rig) begin() {
	var err error
	if r.svc, err = New(r.conf); err != nil {
		r.Fatal(err)
	}
	r.svc.guard.look(r.conf.Clock()) // as the first round does
	ln, server := fasthttputil.NewInmemoryListener(), r.server()
	r.ln = ln
	go func() { _ = server.Serve(ln) }()
}

func (r *rig) end() {
	r.svc.guard.stop()
	r.svc.Close()
	_ = r.ln.Close()
}

func (r *rig) restartService() {
	r.end()
	r.begin()
}

// reopen closes the store and opens it again. With dice it crashes first, and of what
// was not synced any part may be left.
func (r *rig) reopen(dice *rand.Rand) {
	fs := r.fs
	if dice != nil {
		fs = keystoretest.Crash(r.fs, 50*dice.IntN(3), dice)
	}
	r.end()
	if err := r.store.Close(); err != nil {
		r.Fatal(err)
	}
	r.fs = fs
	r.open()
	r.svc.ConfirmClock() // a crash forgets how late it was
}

func (r *rig) close() {
	r.end()
	_ = r.store.Close()
	_ = r.root.Close()
}

// note keeps what was answered, but for what is random.
func (r *rig) note(op, region string, a answer) {
	text := a.body
	outcomes[op+" "+a.code()]++
	switch {
	case op == "ListKeys", op == "ListAliases", strings.HasSuffix(op, "Grants"):
		text = "" // sorted by random ids, or long
	case a.status == 200 && op != "DescribeKey":
		for _, member := range []string{"CiphertextBlob", "PrivateKeyCiphertextBlob", "PrivateKeyPlaintext", "Plaintext", "Signature", "Mac", "GrantToken", "ImportToken", "PublicKey", "NextMarker"} {
			if s := a.str(member); s != "" {
				text = strings.ReplaceAll(text, `"`+s+`"`, member)
			}
		}
	}
	r.told = append(r.told, fmt.Sprintf("%s %s %d %s", op, region, a.status, text))
}

// play plays a history and returns what went wrong, and every answer with what is
// random replaced by names.
func play(t testing.TB, of setting, h *history) (failure string, told []string) {
	if of.procs > 0 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(of.procs))
	}
	limits := quota.None()
	limits.Resources.TagsPerKey, limits.Resources.AliasesPerKey = historyTags, historyAliases
	limits.Resources.GrantsPerKey, limits.Resources.OnDemandRotations = historyGrants, historyRotations
	p := &player{rig: newRig(t, of, limits, nil), history: h}
	defer p.rig.close()
	p.w = &world{now: p.now, aliases: map[[2]string]*malias{}, names: map[string]string{}}
	defer func() {
		if v := recover(); v != nil {
			text, ok := v.(historyFailure)
			if !ok {
				panic(v)
			}
			failure, told = string(text)+"\n"+p.logs.String(), p.told
		}
	}()
	for i, s := range h.steps {
		p.d = rand.New(rand.NewPCG(s.seed, 0))
		p.told = append(p.told, fmt.Sprintf("-- %d %s", i, stepKinds[s.kind].name))
		stepKinds[s.kind].play(p)
	}
	p.d = rand.New(rand.NewPCG(0, 0))
	p.told = append(p.told, "-- end")
	p.audit()
	if err := p.store.Verify(context.Background(), nil); err != nil {
		p.Fatal(err)
	}
	var pairs []string
	for text, name := range p.w.names {
		pairs = append(pairs, text, name)
	}
	names := strings.NewReplacer(pairs...)
	for i := range p.told {
		p.told[i] = names.Replace(p.told[i])
	}
	return "", p.told
}

// shorten looks for a part of a history that fails as well: it leaves out ever smaller
// pieces, as long as that helps.
func shorten(steps []int, fails func([]int) bool) []int {
	for size := len(steps) / 2; size > 0; size /= 2 {
		for from := 0; from+size <= len(steps); {
			without := slices.Concat(steps[:from], steps[from+size:])
			if fails(without) {
				steps = without
			} else {
				from += size
			}
		}
	}
	return steps
}

// checkHistory plays the history of a seed.
func checkHistory(t *testing.T, of setting, seed uint64, length int) {
	t.Helper()
	whole := newHistory(seed, length)
	indexes := historySteps(t, length)
	failure, _ := play(t, of, whole.part(indexes))
	if failure == "" {
		return
	}
	indexes = shorten(indexes, func(part []int) bool { f, _ := play(t, of, whole.part(part)); return f != "" })
	last, told := play(t, of, whole.part(indexes))
	if last == "" {
		last = failure + "\n(not every time)"
	}
	text := make([]string, len(indexes))
	for i, n := range indexes {
		text[i] = strconv.Itoa(n)
	}
	t.Fatalf("with %s: %s\n\nplay it again with\nKEYMILL_TEST_SEED=%d KEYMILL_TEST_LENGTH=%d KEYMILL_TEST_STEPS=%s go test ./daemon/kms -run '^TestHistories$'\n\n%s",
		of.name, last, seed, length, strings.Join(text, ","), strings.Join(told, "\n"))
}

// historySteps returns the steps to play.
func historySteps(t *testing.T, length int) (indexes []int) {
	if text := os.Getenv("KEYMILL_TEST_STEPS"); text != "" {
		for part := range strings.SplitSeq(text, ",") {
			n, err := strconv.Atoi(part)
			if err != nil || n < 0 || n >= length {
				t.Fatalf("KEYMILL_TEST_STEPS=%s: %q is not one of %d steps", text, part, length)
			}
			indexes = append(indexes, n)
		}
		return indexes
	}
	for i := range length {
		indexes = append(indexes, i)
	}
	return indexes
}

func envNumber(t *testing.T, name string, byDefault uint64) (n uint64, set bool) {
	text := os.Getenv(name)
	if text == "" {
		return byDefault, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%s: %v", name, text, err)
	}
	return n, true
}

// historySeeds returns how many histories to play, from which seed on, how long they
// are, and how long that may take, 0 for ever.
func historySeeds(t *testing.T, usual uint64) (count, from uint64, length int, budget time.Duration) {
	count, asked := envNumber(t, "KEYMILL_TEST_HISTORIES", usual)
	n, _ := envNumber(t, "KEYMILL_TEST_LENGTH", historyLength)
	budget = historyBudget
	if asked {
		from, budget = uint64(time.Now().UnixNano()), 0
	}
	if seed, set := envNumber(t, "KEYMILL_TEST_SEED", 0); set {
		if from = seed; !asked {
			count = 1
		}
	}
	return count, from, int(n), budget
}

// TestHistories plays histories, with one setting after the other.
func TestHistories(t *testing.T) {
	count, from, length, budget := historySeeds(t, histories)
	began := time.Now()
	played := uint64(0)
	clear(outcomes)
	for ; played < count && (budget == 0 || played < 8 || time.Since(began) < budget); played++ {
		seed := from + played
		checkHistory(t, settings[seed/uint64(len(themes))%uint64(len(settings))], seed, length)
	}
	t.Logf("%d histories of %d steps in %s", played, length, time.Since(began).Round(time.Millisecond))
	if testing.Verbose() {
		for _, o := range slices.Sorted(maps.Keys(outcomes)) {
			t.Logf("%6d %s", outcomes[o], o)
		}
	}
}

// outcomes counts what operations answered, for those who want to see what histories
// reach.
var outcomes = map[string]int{}

// TestHistoriesSameAnswers plays each history with every setting. They must be the
// same to the letter, but for what is random.
func TestHistoriesSameAnswers(t *testing.T) {
	count, from, length, budget := historySeeds(t, histories/8)
	began := time.Now()
	for i := range count {
		if budget > 0 && i >= 2 && time.Since(began) > budget/2 {
			break
		}
		h := newHistory(from+i+1_000_000, length)
		var first []string
		for _, of := range settings {
			failure, told := play(t, of, h)
			if failure != "" {
				t.Fatalf("seed %d, with %s: %s", from+i+1_000_000, of.name, failure)
			}
			if first == nil {
				first = told
			} else if diff := cmp.Diff(first, told); diff != "" {
				t.Fatalf("seed %d: with %s not as with %s (-, +):\n%s", from+i+1_000_000, of.name, settings[0].name, diff)
			}
		}
	}
}

var historyPairs = sync.OnceValue(func() (pairs [8][]byte) {
	for i := range pairs {
		b, err := engine.GenerateMaterial(engine.P256)
		if err != nil {
			panic(err)
		}
		pairs[i] = b
	}
	return pairs
})

// historyPair is the private key of asymmetric imported keys with that secret.
func historyPair(secret byte) []byte { return historyPairs()[secret] }
