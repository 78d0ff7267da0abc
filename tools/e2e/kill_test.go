package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
)

// A crash must lose nothing that was acknowledged. Writers change things until
// the process is killed under them; then the daemon starts on the same directory
// and what it shows is compared with what each writer knows:
//
//	acknowledged            must be there
//	sent, not acknowledged  is there as a whole or not at all
//	never sent              is not there
//
// A writer has at most one change under way, and its keys and aliases are its
// own, so there are two possible pictures of them and no more.

const (
	killRounds   = 50
	killWriters  = 4
	keysOfWriter = 6
)

// A picture is everything that can be seen of one writer's things.
type picture struct {
	Keys    map[string]keyPicture
	Aliases map[string]string // name to key id
}

type keyPicture struct {
	State, Description string
	Tags               map[string]string
}

func (p picture) clone() picture {
	c := picture{maps.Clone(p.Keys), maps.Clone(p.Aliases)}
	for id, k := range c.Keys {
		k.Tags = maps.Clone(k.Tags)
		c.Keys[id] = k
	}
	return c
}

// A writer makes random changes, one after another.
type writer struct {
	n        int
	rand     *rand.Rand
	acked    picture
	pending  func(*picture) // the change under way; nil for none
	creating bool           // a CreateKey is under way
	count    int            // names what it makes
	acks     int
	dataKeys []dataKey
}

type dataKey struct {
	id              string
	blob, plaintext []byte
}

func (w *writer) prefix() string { return fmt.Sprintf("alias/w%d/", w.n) }

// step makes one change and records its acknowledgement. It returns the error of
// a call that was not answered; an answer that refuses is a defect.
func (w *writer) step(ctx context.Context, c *kms.Client) error {
	if len(w.acked.Keys) < keysOfWriter && (len(w.acked.Keys) == 0 || w.rand.IntN(5) == 0) {
		w.creating = true
		text := fmt.Sprint("key ", w.n, " ", w.count)
		w.count++
		in := &kms.CreateKeyInput{Description: &text, Tags: []types.Tag{{TagKey: ptr("writer"), TagValue: ptr(strconv.Itoa(w.n))}}}
		if w.rand.IntN(3) == 0 {
			in.KeySpec, in.KeyUsage = types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify
		}
		out, err := c.CreateKey(ctx, in)
		if err != nil {
			return err
		}
		w.creating = false
		w.acks++
		w.acked.Keys[*out.KeyMetadata.KeyId] = keyPicture{"Enabled", text, map[string]string{"writer": strconv.Itoa(w.n)}}
		return nil
	}
	id := w.pick(slices.Sorted(maps.Keys(w.acked.Keys)))
	key := w.acked.Keys[id]
	names := slices.Sorted(maps.Keys(w.acked.Aliases))
	setKey := func(change func(*keyPicture)) func(*picture) {
		return func(p *picture) {
			k := p.Keys[id]
			change(&k)
			p.Keys[id] = k
		}
	}
	setState := func(s string) func(*picture) { return setKey(func(k *keyPicture) { k.State = s }) }
	do := func(change func(*picture), call func() error) error {
		w.pending = change
		if err := call(); err != nil {
			return err
		}
		change(&w.acked)
		w.pending = nil
		w.acks++
		return nil
	}
	w.count++
	switch n := w.rand.IntN(12); {
	case key.State == "PendingDeletion":
		return do(setState("Disabled"), func() error {
			_, err := c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &id})
			return err
		})
	case n == 0 && key.State == "Enabled":
		return do(setState("Disabled"), func() error {
			_, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &id})
			return err
		})
	case n <= 1:
		return do(setState("Enabled"), func() error {
			_, err := c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &id})
			return err
		})
	case n == 2:
		return do(setState("PendingDeletion"), func() error {
			_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &id})
			return err
		})
	case n == 3:
		tag, value := fmt.Sprint("t", w.rand.IntN(4)), strconv.Itoa(w.count)
		return do(setKey(func(k *keyPicture) { k.Tags = maps.Clone(k.Tags); k.Tags[tag] = value }), func() error {
			_, err := c.TagResource(ctx, &kms.TagResourceInput{KeyId: &id, Tags: []types.Tag{{TagKey: &tag, TagValue: &value}}})
			return err
		})
	case n == 4:
		tag := fmt.Sprint("t", w.rand.IntN(4))
		return do(setKey(func(k *keyPicture) { k.Tags = maps.Clone(k.Tags); delete(k.Tags, tag) }), func() error {
			_, err := c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &id, TagKeys: []string{tag}})
			return err
		})
	case n == 5:
		text := fmt.Sprint("changed ", w.count)
		return do(setKey(func(k *keyPicture) { k.Description = text }), func() error {
			_, err := c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &id, Description: &text})
			return err
		})
	case n == 6 && len(names) < 8:
		name := w.prefix() + strconv.Itoa(w.count)
		return do(func(p *picture) { p.Aliases[name] = id }, func() error {
			_, err := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: &id})
			return err
		})
	case n <= 7 && len(names) > 0:
		name := w.pick(names)
		return do(func(p *picture) { delete(p.Aliases, name) }, func() error {
			_, err := c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &name})
			return err
		})
	case key.State == "Enabled":
		out, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &id, KeySpec: types.DataKeySpecAes256})
		if err != nil {
			if apiErrorOf(err).Code == "InvalidKeyUsageException" { // a signing key
				return nil
			}
			return err
		}
		w.dataKeys = append(w.dataKeys, dataKey{id, out.CiphertextBlob, out.Plaintext})
	}
	return nil
}

func (w *writer) pick(from []string) string { return from[w.rand.IntN(len(from))] }

// TestKill kills the daemon under concurrent writers, many times over.
func TestKill(t *testing.T) {
	rounds := killRounds
	if v := os.Getenv("KEYMILL_TEST_KILL_ROUNDS"); v != "" {
		rounds = must(strconv.Atoi(v))(t)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("%d rounds, seed %d", rounds, seed)
	random := rand.New(rand.NewPCG(seed, 0))

	d := start(t, Options{})
	s := storyIn(t, d, "us-east-1")
	var writers []*writer
	for n := range killWriters {
		writers = append(writers, &writer{
			n: n, rand: rand.New(rand.NewPCG(seed, uint64(n)+1)),
			acked: picture{make(map[string]keyPicture), make(map[string]string)},
		})
	}
	strays := make(map[string]bool) // keys whose creation was not acknowledged
	inFlight := 0
	for round := range rounds {
		// After the start the writers have 10 to 90 ms.
		life := time.Duration(10+random.IntN(80)) * time.Millisecond
		var wg sync.WaitGroup
		errs := make([]error, len(writers))
		for i, w := range writers {
			wg.Go(func() {
				for errs[i] == nil {
					errs[i] = w.step(t.Context(), s.Client)
				}
			})
		}
		time.AfterFunc(life, func() { d.cmd.Process.Kill() })
		wg.Wait()
		<-d.done
		for i, err := range errs {
			if code := apiErrorOf(err).Code; code != "" {
				t.Fatalf("round %d, writer %d was refused: %v", round, i, err)
			}
			if writers[i].pending != nil || writers[i].creating {
				inFlight++
			}
		}
		if round%5 == 4 {
			killWhileStarting(t, d, time.Duration(random.IntN(60))*time.Millisecond)
		}
		if err := d.StartAgain(t.Context()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		s.settle(writers, strays)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}

	acks, dataKeys := 0, 0
	for _, w := range writers {
		acks += w.acks
		// Back to work: every data key ever acknowledged, whatever became of its key.
		for id, k := range w.acked.Keys {
			if k.State == "PendingDeletion" {
				must(s.CancelKeyDeletion(s.ctx(), &kms.CancelKeyDeletionInput{KeyId: &id}))(t)
			}
			must(s.EnableKey(s.ctx(), &kms.EnableKeyInput{KeyId: &id}))(t)
		}
		for _, dk := range w.dataKeys {
			out := must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: dk.blob}))(t)
			if !bytes.Equal(out.Plaintext, dk.plaintext) {
				t.Errorf("a data key of %s decrypts to something else", dk.id)
			}
			dataKeys++
		}
	}
	t.Logf("%d changes acknowledged, %d in flight when killed, %d keys made unacknowledged, %d data keys", acks, inFlight, len(strays), dataKeys)
	if acks < rounds || inFlight == 0 || dataKeys == 0 {
		t.Error("the rounds say little")
	}
}

// killWhileStarting kills a starting daemon after a while.
func killWhileStarting(t *testing.T, d *Daemon, after time.Duration) {
	t.Helper()
	if err := d.startProcess(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(after):
		d.Kill()
	case <-d.done:
		t.Fatalf("the daemon ended by itself: %v\n%s", d.err, d.Log())
	}
}

// settle compares what the daemon shows with what each writer knows and makes the
// picture that was found the writers' own.
func (s *story) settle(writers []*writer, strays map[string]bool) {
	s.Helper()
	found := make(map[int]picture)
	for _, w := range writers {
		found[w.n] = picture{make(map[string]keyPicture), make(map[string]string)}
	}
	for name, id := range s.aliases(nil, 100) {
		var n int
		if _, err := fmt.Sscanf(name, "alias/w%d/", &n); err != nil {
			s.Errorf("alias %s", name)
			continue
		}
		found[n].Aliases[name] = id
		if got := *s.describe(name).KeyId; got != id {
			s.Errorf("%s is listed with %s and finds %s", name, id, got)
		}
	}
	for _, id := range s.keyIDs() {
		meta := s.describe(id)
		k := keyPicture{string(meta.KeyState), *meta.Description, s.tags(id)}
		n, err := strconv.Atoi(k.Tags["writer"])
		if err != nil {
			s.Errorf("key %s has the tags %v", id, k.Tags)
			continue
		}
		if _, mine := writers[n].acked.Keys[id]; mine {
			found[n].Keys[id] = k
			continue
		}
		if !strays[id] {
			if !writers[n].creating {
				s.Errorf("key %s of writer %d was never asked for", id, n)
			}
			writers[n].creating = false
			strays[id] = true
			s.usable(id, meta.KeyUsage)
		}
	}
	for _, w := range writers {
		got := found[w.n]
		diff := cmp.Diff(w.acked, got)
		if diff != "" && w.pending != nil {
			with := w.acked.clone()
			w.pending(&with)
			if cmp.Diff(with, got) == "" {
				diff = ""
			}
		}
		if diff != "" {
			s.Errorf("writer %d (-acknowledged +found), change under way: %t\n%s", w.n, w.pending != nil, diff)
		}
		w.acked, w.pending, w.creating = got, nil, false
		for _, dk := range w.dataKeys[max(0, len(w.dataKeys)-5):] {
			out, err := s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: dk.blob})
			switch code := apiErrorOf(err).Code; got.Keys[dk.id].State {
			case "Enabled":
				if err != nil || !bytes.Equal(out.Plaintext, dk.plaintext) {
					s.Errorf("a data key of %s: %v", dk.id, err)
				}
			case "Disabled":
				if code != "DisabledException" {
					s.Errorf("a data key of the disabled %s: %v", dk.id, err)
				}
			default:
				if code != "KMSInvalidStateException" {
					s.Errorf("a data key of %s, which is pending deletion: %v", dk.id, err)
				}
			}
		}
	}
}

// usable checks that a key whose creation was cut short is a whole key.
func (s *story) usable(id string, usage types.KeyUsageType) {
	s.Helper()
	var err error
	if usage == types.KeyUsageTypeSignVerify {
		_, err = s.Sign(s.ctx(), &kms.SignInput{KeyId: &id, Message: []byte("x"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256})
	} else {
		_, err = s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	}
	_, policyErr := s.GetKeyPolicy(s.ctx(), &kms.GetKeyPolicyInput{KeyId: &id})
	if err = errors.Join(err, policyErr); err != nil {
		s.Errorf("key %s was made by halves: %v", id, err)
	}
}

// TestKillFirstStart kills a daemon while it makes its data directory. The next
// start must go on, and the credentials that are there then must be good.
func TestKillFirstStart(t *testing.T) {
	for name, withToken := range map[string]bool{"software": false, "SoftHSM": true} {
		t.Run(name, func(t *testing.T) {
			o := Options{Binary: binary}
			tries := 15
			if withToken {
				o.Token = token(t)
				tries = 5
			}
			for i := range tries {
				o.Dir = filepath.Join(t.TempDir(), "data")
				d := &Daemon{opts: o}
				var err error
				if d.addr, d.adminAddr, err = freeAddresses(); err != nil {
					t.Fatal(err)
				}
				killWhileStarting(t, d, time.Duration(i*8)*time.Millisecond)
				if err := d.StartAgain(t.Context()); err != nil {
					t.Fatalf("after %d ms: %v", i*8, err)
				}
				storyIn(t, d, "us-east-1").symmetricKey()
				if err := d.Stop(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
