package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestJavaScript runs the AWS SDK for JavaScript v3 and the AWS Encryption SDK
// for JavaScript.
func TestJavaScript(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err != nil {
		skip(t, "node", "node is not installed; Debian's package nodejs brings it")
	}
	if _, err := os.Stat(filepath.Join("node", "node_modules", "@aws-sdk", "client-kms")); err != nil {
		skip(t, "node", "the JavaScript clients are not installed; run: npm ci --prefix tools/e2e/node")
	}
	for i, script := range []string{"sdk.mjs", "encryption-sdk.mjs"} {
		t.Run(script, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), node, "--test", script)
			cmd.Dir = "node"
			// The later variables win; a region of its own as for any story.
			cmd.Env = append(shared.Environ(), "KEYMILL_ENDPOINT="+shared.URL(), fmt.Sprintf("AWS_REGION=js-test-%d", i))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Log(summary(string(out)))
		})
	}
}

// summary is the end of what node's test runner prints.
func summary(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		for _, word := range []string{"tests ", "pass ", "fail ", "skipped "} {
			if _, count, ok := strings.Cut(line, " "+word); ok && len(count) < 8 {
				lines = append(lines, word+strings.TrimSpace(count))
			}
		}
	}
	return strings.Join(lines, ", ")
}

// TestCommandLine runs the aws command the way the daemon's first words tell a
// stranger to: with the printed credentials file, endpoint and region.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	aws, err := exec.LookPath("aws")
	if err == nil {
		err = exec.Command(aws, "--version").Run()
	}
	if err != nil {
		skip(t, "aws", "the aws command is not installed")
	}
	s := newStory(t)
	run := func(args ...string) map[string]any {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), aws, append([]string{"kms"}, args...)...)
		cmd.Env = append(s.d.Environ(), "AWS_REGION="+s.region, "AWS_DEFAULT_REGION="+s.region)
		cmd.Args = append(cmd.Args, "--endpoint-url", s.d.URL(), "--output", "json")
		out, err := cmd.Output()
		if err != nil {
			var text []byte
			if exit, ok := err.(*exec.ExitError); ok {
				text = exit.Stderr
			}
			t.Fatalf("aws kms %s: %v\n%s", strings.Join(args, " "), err, text)
		}
		answer := make(map[string]any)
		if len(out) > 0 {
			if err := json.Unmarshal(out, &answer); err != nil {
				t.Fatalf("aws kms %s printed %q", args[0], out)
			}
		}
		return answer
	}
	file := func(name string, data []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return "fileb://" + path
	}
	decode := func(v any) []byte { return must(base64.StdEncoding.DecodeString(v.(string)))(t) }

	key := run("create-key", "--description", "from the command line")["KeyMetadata"].(map[string]any)
	id := key["KeyId"].(string)
	run("create-alias", "--alias-name", "alias/cli", "--target-key-id", id)
	sealed := run("encrypt", "--key-id", "alias/cli", "--plaintext", file("plain", []byte("secret")), "--encryption-context", "a=b,c=d")
	opened := run("decrypt", "--ciphertext-blob", file("sealed", decode(sealed["CiphertextBlob"])), "--encryption-context", "c=d,a=b")
	if got := string(decode(opened["Plaintext"])); got != "secret" || opened["KeyId"] != key["Arn"] {
		t.Errorf("decrypted %q with %v", got, opened["KeyId"])
	}
	if got := len(decode(run("generate-data-key", "--key-id", id, "--key-spec", "AES_256")["Plaintext"])); got != 32 {
		t.Errorf("a data key of %d bytes", got)
	}
	signer := run("create-key", "--key-spec", "ECC_NIST_P256", "--key-usage", "SIGN_VERIFY")["KeyMetadata"].(map[string]any)["KeyId"].(string)
	message := file("message", []byte("sign me"))
	signed := run("sign", "--key-id", signer, "--message", message, "--signing-algorithm", "ECDSA_SHA_256")
	verified := run("verify", "--key-id", signer, "--message", message, "--signing-algorithm", "ECDSA_SHA_256", "--signature", file("signature", decode(signed["Signature"])))
	if verified["SignatureValid"] != true {
		t.Errorf("verify printed %v", verified)
	}
	var listed []string
	for _, k := range run("list-keys", "--page-size", "1")["Keys"].([]any) {
		listed = append(listed, k.(map[string]any)["KeyId"].(string))
	}
	if diff := cmp.Diff(map[string]bool{id: true, signer: true}, set(listed)); diff != "" {
		t.Error(diff)
	}
}

func set(list []string) map[string]bool {
	m := make(map[string]bool)
	for _, s := range list {
		m[s] = true
	}
	return m
}
