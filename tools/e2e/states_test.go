package e2e

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A stateClass is a row of AWS's table of key states, as far as the states that
// a key of origin AWS_KMS can be in go.
type stateClass int

const (
	stateAny    stateClass = iota // allowed in every state
	stateCrypto                   // only Enabled
	statePublic                   // Enabled and Disabled
	stateChange                   // Enabled and Disabled; not PendingDeletion
	stateCancel                   // only PendingDeletion
)

// refusal is what a class answers in a state; the zero value is success.
func (c stateClass) refusal(state types.KeyState, arn string) (code, text string) {
	switch {
	case c == stateCancel && state != types.KeyStatePendingDeletion:
		return "KMSInvalidStateException", arn + " is not pending deletion."
	case c == stateCancel, c == stateAny, state == types.KeyStateEnabled:
		return "", ""
	case state == types.KeyStatePendingDeletion:
		return "KMSInvalidStateException", arn + " is pending deletion."
	case c == stateCrypto:
		return "DisabledException", arn + " is disabled."
	}
	return "", ""
}

// TestStates tries every operation on a key in every state.
func TestStates(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	for _, state := range []types.KeyState{types.KeyStateEnabled, types.KeyStateDisabled, types.KeyStatePendingDeletion} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			for _, c := range calls {
				t.Run(c.op, func(t *testing.T) {
					k := newKeyring(s.in(t))
					key := k.keyFor(c.op)
					k.enter(*key.KeyId, state)
					err := c.do(t.Context(), k, *key.KeyId, nil)
					code, text := c.state.refusal(state, *key.Arn)
					if code == "" {
						if err != nil {
							t.Error(err)
						}
						return
					}
					wantError(t, err, code, text)
					if got := k.describe(*key.KeyId).KeyState; got != state {
						t.Errorf("the key is now %s", got)
					}
					if c.dryRun {
						wantError(t, c.do(t.Context(), k, *key.KeyId, ptr(true)), code, text)
					}
				})
			}
			t.Run("Decrypt without KeyId", func(t *testing.T) {
				s := s.in(t)
				key := s.newKey("", "")
				blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
				s.enter(*key.KeyId, state)
				_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob})
				if code, text := stateCrypto.refusal(state, *key.Arn); code != "" {
					wantError(t, err, code, text)
				} else if err != nil {
					t.Error(err)
				}
			})
			t.Run("ReEncrypt to it", func(t *testing.T) {
				s := s.in(t)
				key, source := s.newKey("", ""), s.symmetricKey()
				blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &source, Plaintext: []byte("x")}))(t).CiphertextBlob
				s.enter(*key.KeyId, state)
				_, err := s.ReEncrypt(s.ctx(), &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: key.KeyId})
				if code, text := stateCrypto.refusal(state, *key.Arn); code != "" {
					wantError(t, err, code, text)
				} else if err != nil {
					t.Error(err)
				}
			})
			t.Run("aliases", func(t *testing.T) {
				s := s.in(t)
				going, staying := s.newKey("", ""), s.symmetricKey()
				name, other := "alias/on-"+string(state), "alias/to-"+string(state)
				must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: &name, TargetKeyId: going.KeyId}))(t)
				must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: &other, TargetKeyId: &staying}))(t)
				s.enter(*going.KeyId, state)
				code, text := stateChange.refusal(state, *going.Arn)
				check := func(err error) {
					t.Helper()
					if code != "" {
						wantError(t, err, code, text)
					} else if err != nil {
						t.Error(err)
					}
				}
				_, err := s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr("alias/new-" + string(state)), TargetKeyId: going.KeyId})
				check(err)
				_, err = s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: &other, TargetKeyId: going.KeyId})
				check(err)
				// Away from it, and deletion, in every state.
				must(s.UpdateAlias(s.ctx(), &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: &staying}))(t)
				must(s.DeleteAlias(s.ctx(), &kms.DeleteAliasInput{AliasName: &name}))(t)
			})
		})
	}
}

// enter takes an enabled key to a state.
func (s *story) enter(id string, state types.KeyState) {
	s.Helper()
	switch state {
	case types.KeyStateDisabled:
		must(s.DisableKey(s.ctx(), &kms.DisableKeyInput{KeyId: &id}))(s)
	case types.KeyStatePendingDeletion:
		must(s.ScheduleKeyDeletion(s.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: &id}))(s)
	}
	if got := s.describe(id); got.KeyState != state || got.Enabled != (state == types.KeyStateEnabled) {
		s.Fatalf("the key is %s, enabled %t, want %s", got.KeyState, got.Enabled, state)
	}
}

// TestLife walks a key through its states and back.
func TestLife(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.newKey("", "")
	id := key.KeyId
	blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: id, Plaintext: []byte("x")}))(t).CiphertextBlob

	for range 2 { // enabling and disabling may be repeated
		must(s.DisableKey(s.ctx(), &kms.DisableKeyInput{KeyId: id}))(t)
	}
	for range 2 {
		must(s.EnableKey(s.ctx(), &kms.EnableKeyInput{KeyId: id}))(t)
	}
	must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob}))(t)

	for _, days := range []int32{6, 31, 0, 366} {
		_, err := s.ScheduleKeyDeletion(s.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: id, PendingWindowInDays: &days})
		wantError(t, err, "ValidationException", "1 validation error detected: Value '...")
	}
	for _, tc := range []struct {
		days *int32
		want int32
	}{{nil, 30}, {ptr[int32](7), 7}, {ptr[int32](30), 30}} {
		out := must(s.ScheduleKeyDeletion(s.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: id, PendingWindowInDays: tc.days}))(t)
		described := s.describe(*id)
		if *out.KeyId != *key.Arn || out.KeyState != types.KeyStatePendingDeletion || *out.PendingWindowInDays != tc.want {
			t.Errorf("answered %+v", out)
		}
		if described.DeletionDate == nil || !described.DeletionDate.Equal(*out.DeletionDate) {
			t.Errorf("DescribeKey has the date %v, the answer had %v", described.DeletionDate, out.DeletionDate)
		}
		if days := out.DeletionDate.Sub(*key.CreationDate).Hours() / 24; days < float64(tc.want)-0.01 || days > float64(tc.want)+0.1 {
			t.Errorf("deletion in %.3f days, want %d", days, tc.want)
		}
		cancelled := must(s.CancelKeyDeletion(s.ctx(), &kms.CancelKeyDeletionInput{KeyId: id}))(t)
		if *cancelled.KeyId != *key.Arn {
			t.Errorf("CancelKeyDeletion answered %s", *cancelled.KeyId)
		}
		if got := s.describe(*id); got.KeyState != types.KeyStateDisabled || got.DeletionDate != nil || got.Enabled {
			t.Errorf("after cancelling: %s, date %v", got.KeyState, got.DeletionDate)
		}
	}
	must(s.EnableKey(s.ctx(), &kms.EnableKeyInput{KeyId: id}))(t)
	must(s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob}))(t)
}
