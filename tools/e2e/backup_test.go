package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// keymill runs a command of the binary and returns what it printed.
func keymill(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(environWithout("KEYMILL_"), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// copyFile copies a secret file as an operator does.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data := must(os.ReadFile(from))(t)
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestBackup takes a backup of a daemon that is working, restores it elsewhere
// and decrypts there what was encrypted here.
func TestBackup(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"software", "SoftHSM"} {
		t.Run(root, func(t *testing.T) {
			o := Options{}
			if root == "SoftHSM" {
				o.Token = token(t)
			}
			d := start(t, o)
			s := storyIn(t, d, "us-east-1")
			id := s.symmetricKey()
			blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte("kept")}))(t).CiphertextBlob
			must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr("alias/kept"), TargetKeyId: &id}))(t)

			// Somebody goes on working meanwhile.
			stop, stopped := make(chan struct{}), make(chan error)
			go func() {
				for {
					select {
					case <-stop:
						stopped <- nil
						return
					default:
					}
					if _, err := s.UpdateKeyDescription(s.ctx(), &kms.UpdateKeyDescriptionInput{KeyId: &id, Description: ptr("busy")}); err != nil {
						stopped <- err
						return
					}
				}
			}()
			to := filepath.Join(t.TempDir(), "backup")
			out, err := keymill(t, nil, "backup", "--data", d.Dir(), "--to", to)
			close(stop)
			if workErr := <-stopped; workErr != nil {
				t.Errorf("while the backup was taken: %v", workErr)
			}
			if err != nil {
				t.Fatalf("backup: %v\n%s", err, out)
			}
			if out, err := keymill(t, nil, "backup", "--data", d.Dir(), "--to", to); err == nil {
				t.Errorf("a backup was written over another:\n%s", out)
			}
			late := s.symmetricKey() // made after the backup

			secrets := []string{"credentials"}
			if o.Token == nil {
				secrets = append(secrets, "root.key")
			}
			for _, name := range secrets {
				if err := holdsNot(to, secretsOf(t, filepath.Join(d.Dir(), name))); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}

			elsewhere := filepath.Join(t.TempDir(), "data")
			if out, err := keymill(t, nil, "restore", "--data", elsewhere, "--from", to); err != nil {
				t.Fatalf("restore: %v\n%s", err, out)
			}
			if o.Token == nil {
				withoutRoot := &Daemon{opts: Options{Binary: binary, Dir: elsewhere}, addr: "127.0.0.1:0", adminAddr: "127.0.0.1:0"}
				if out, err := withoutRoot.Command().CombinedOutput(); err == nil {
					t.Errorf("a daemon without the root key started:\n%s", out)
				}
			}
			for _, name := range secrets {
				copyFile(t, filepath.Join(d.Dir(), name), filepath.Join(elsewhere, name))
			}
			if out, err := keymill(t, nil, "restore", "--data", elsewhere, "--from", to); err == nil {
				t.Errorf("a store was restored over another:\n%s", out)
			}
			o.Dir = elsewhere
			restored := storyIn(t, start(t, o), "us-east-1")
			got := must(restored.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob}))(t)
			if string(got.Plaintext) != "kept" {
				t.Errorf("decrypted %q", got.Plaintext)
			}
			if found := restored.describe("alias/kept"); *found.KeyId != id {
				t.Errorf("the alias finds %s, want %s", *found.KeyId, id)
			}
			_, err = restored.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &late})
			wantError(t, err, "NotFoundException", "Key '"+restored.keyARN(late)+"' does not exist")
		})
	}
}

// secretsOf returns what must be nowhere else of a root key file or a
// credentials file.
func secretsOf(t *testing.T, path string) [][]byte {
	t.Helper()
	data := must(os.ReadFile(path))(t)
	if filepath.Base(path) != "credentials" {
		return [][]byte{data[len(data)/2:]} // past whatever header it has
	}
	_, secret, ok := bytes.Cut(data, []byte("aws_secret_access_key = "))
	if !ok {
		t.Fatalf("%s has no secret access key", path)
	}
	return [][]byte{bytes.TrimSpace(secret)}
}

// holdsNot reports the first file below dir that has a secret in it.
func holdsNot(dir string, secrets [][]byte) error {
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, s := range secrets {
			if bytes.Contains(data, s) {
				return fmt.Errorf("%s holds a secret", path)
			}
		}
		return nil
	})
}

// TestRestart: what was there is there after a stop, on both roots.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"software", "SoftHSM"} {
		t.Run(root, func(t *testing.T) {
			o := Options{}
			if root == "SoftHSM" {
				o.Token = token(t)
			}
			d := start(t, o)
			k := newKeyring(storyIn(t, d, "us-east-1"))
			must(k.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: ptr("alias/a"), TargetKeyId: k.symmetric.KeyId}))(t)
			for _, name := range []string{"credentials", "."} {
				info := must(os.Stat(filepath.Join(d.Dir(), name)))(t)
				if info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s has mode %s", name, info.Mode())
				}
			}
			before := k.everything()
			credentials := must(os.ReadFile(d.CredentialsFile()))(t)
			if err := d.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(credentials, must(os.ReadFile(d.CredentialsFile()))(t)) {
				t.Error("the credentials changed")
			}
			if diff := compare(before, k.everything()); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
			for _, c := range calls {
				if c.op == "DisableKey" || c.op == "ScheduleKeyDeletion" || c.op == "CancelKeyDeletion" {
					continue
				}
				if err := c.do(t.Context(), k, *k.keyFor(c.op).KeyId, nil); err != nil {
					t.Errorf("%s after the restart: %v", c.op, err)
				}
			}
			if bytes.Contains([]byte(d.Log()), secretsOf(t, d.CredentialsFile())[0]) {
				t.Error("the secret access key is in the log")
			}
		})
	}
}
