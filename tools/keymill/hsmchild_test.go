package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"keymill/hsm/hsmtest"
)

// The daemon does not have the module loaded; when the process that has it is killed, the
// daemon stays, and what needs the token waits for the next one.
func TestDaemonSurvivesTheModule(t *testing.T) {
	token := hsmtest.NewSoftHSMDir(t)
	data := filepath.Join(t.TempDir(), "data")
	d := serveDaemon(t, "--data", data, "--hsm-module", token.Config.Module, "--hsm-token", token.Config.TokenLabel, "--hsm-pin-file", token.Config.PINFile)
	match := regexp.MustCompile(`msg="root of trust".* process=(\d+)`).FindStringSubmatch(d.log())
	if match == nil {
		t.Fatalf("no HSM process in the log:\n%s", d.log())
	}
	pid, err := strconv.Atoi(match[1])
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(d.Process.Pid) + "/maps")
	if err == nil && strings.Contains(string(maps), "softhsm") { // root only: the daemon is not dumpable
		t.Error("the daemon has the module loaded")
	}
	line, err := os.ReadFile("/proc/" + match[1] + "/cmdline")
	if err != nil || strings.Contains(string(line), token.PIN()) || strings.Contains(string(line), "pin") {
		t.Errorf("command line %q, %v", line, err)
	}

	api := client(t, d, data)
	key, err := api.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := api.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key.KeyMetadata.KeyId, Plaintext: []byte("before")})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := api.CreateKey(t.Context(), &kms.CreateKeyInput{Description: aws.String("after")}); err != nil {
		t.Error(err)
	}
	opened, err := api.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
	if err != nil || string(opened.Plaintext) != "before" {
		t.Errorf("decrypt: %v", err)
	}
	// A signal to all of the service's processes stops the daemon in good order.
	d.stop(t, syscall.SIGTERM)
}

func TestHSMChildIsNotForPeople(t *testing.T) {
	_, stderr, status := run(t, hsmChildName)
	if status != 1 || !strings.Contains(stderr, "the daemon starts it") {
		t.Errorf("status %d, %q", status, stderr)
	}
	if out, _, _ := run(t, "--help"); strings.Contains(out, hsmChildName) {
		t.Error("the help names it")
	}
}
