package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBenchArguments(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	credentials := file("credentials", "[default]\naws_access_key_id = AKIA\naws_secret_access_key = x\n")
	empty := file("empty", "\n")
	text := file("text", "not a report")
	for args, want := range map[string]string{
		"--op Encrypts":                       "there are GenerateDataKey",
		"--op Sign:P256":                      "no key spec",
		"--mix all":                           "there are storage, signing",
		"--connections 0":                     "1 to 10000",
		"--connections 16,":                   "1 to 10000",
		"--connections 20000":                 "1 to 10000",
		"--rate -1":                           "--rate",
		"--rate 0":                            "--rate must be above 0",
		"--rate NaN":                          "--rate",
		"--rounds 0":                          "--rounds must be from 1",
		"--duration 0s":                       "--duration",
		"--duration 2h":                       "--duration",
		"--warmup -1s":                        "--warmup",
		"--keys 0":                            "--keys must be from 1",
		"--payload 4097":                      "--payload must be from 1 to 4096",
		"--batch 10001":                       "--batch must be from 1 to 10000",
		"--background Sign":                   "lacks the number of connections",
		"--background Sign:RSA_4096":          "no number of connections",
		"--background Sing:64":                "cannot be measured",
		"--compare " + dir + "/none":          "no such file",
		"--compare " + text:                   "no report of keymill bench",
		"--credentials x":                     "--credentials without --endpoint",
		"--pid 1 --api kes":                   "--api, --pid without --endpoint",
		"--endpoint 127.0.0.1:4599":           "is no endpoint",
		"--endpoint http://127.0.0.1:1":       "needs --credentials",
		"--endpoint http://127.0.0.1:1 --tls": "leave them out",
		"--endpoint http://127.0.0.1:1 --hsm-token x":                                  "leave them out",
		"--endpoint http://127.0.0.1:1 --api vault":                                    "there are aws, transit and kes",
		"--endpoint http://127.0.0.1:1 --api transit":                                  "--token-file",
		"--endpoint http://127.0.0.1:1 --api transit --token-file " + empty:            "does not hold one token",
		"--endpoint http://127.0.0.1:1 --api transit --mount /?x --token-file " + text: "does not hold one token",
		"--endpoint http://127.0.0.1:1 --api kes":                                      "needs an https endpoint",
		"--endpoint https://127.0.0.1:1 --api kes":                                     "--client-cert",
		"--endpoint https://127.0.0.1:1 --client-cert " + text:                         "belong together",
		"--endpoint https://127.0.0.1:1 --ca " + text:                                  "no certificate in",
		"--endpoint http://127.0.0.1:1 --credentials " + text:                          "no access key",
		"--endpoint http://127.0.0.1:1 --credentials " + credentials:                   "connection refused",
		"--json " + dir + "/none/x.json":                                               "no such file",
		"--serve-flag=--no-such-flag":                                                  "unknown flag: --no-such-flag",
		"extra":                                                                        "unknown command",
		"startup --keys 0":                                                             "--keys must be from 1",
		"scale --keys 0":                                                               "--keys must be from 1",
		"scale --connections 0":                                                        "--connections must be from 1",
		"scale --duration 0":                                                           "--duration must be above 0",
		"startup --rounds 0":                                                           "--rounds must be from 1",
	} {
		stdout, stderr, status := run(t, append([]string{"bench"}, strings.Fields(args)...)...)
		if status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: status %d, %q; want 1 and %q", args, status, stderr, want)
		}
		if stdout != "" {
			t.Errorf("%s: printed %q", args, stdout)
		}
	}
}

// A whole run against a real daemon, with everything that can be written.
func TestBench(t *testing.T) {
	dir := t.TempDir()
	first, second, page := filepath.Join(dir, "1.json"), filepath.Join(dir, "2.json"), filepath.Join(dir, "r.html")
	short := []string{"bench", "--rounds", "2", "--duration", "400ms", "--warmup", "50ms", "--connections", "2"}
	stdout, stderr, status := run(t, append(short, "--op", "Encrypt", "--mix", "storage", "--payload", "100", "--keys", "3", "--tls", "--baseline", "--json", first)...)
	if status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{"keymill bench --rounds 2", "software root, TLS", "bare fasthttp", "keymill: Decrypt: ", "divided by the bare server's", "primitive's on all processors", "100 B"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	stdout, stderr, status = run(t, append(short, "--op", "Encrypt", "--payload", "100", "--keys", "3", "--tls", "--compare", first, "--json", second, "--html", page)...)
	if status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{"change since", "keymill requests/s", "need >= 4 samples"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	data, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Measurements []struct {
			Workload string
			Series   []struct{ Figures map[string][]float64 }
		}
	}
	if err := json.Unmarshal(data, &report); err != nil || len(report.Measurements) != 1 || len(report.Measurements[0].Series) != 1 {
		t.Fatalf("report %+v, %v", report, err)
	}
	for name, values := range report.Measurements[0].Series[0].Figures {
		if len(values) != 2 || values[0] <= 0 {
			t.Errorf("%s is %v", name, values)
		}
	}
	if data, err := os.ReadFile(page); err != nil || !strings.Contains(string(data), "<svg") {
		t.Errorf("page of %d bytes, %v", len(data), err)
	}

	// An earlier run of something else cannot be compared; this one is kept all the same.
	third := filepath.Join(dir, "3.json")
	_, stderr, status = run(t, append(short, "--op", "DescribeKey", "--compare", first, "--json", third)...)
	if status != 1 || !strings.Contains(stderr, "the earlier report has none of these measurements") {
		t.Errorf("status %d: %s", status, stderr)
	}
	if info, err := os.Stat(third); err != nil || info.Size() == 0 {
		t.Errorf("the figures of an hour are lost: %v", err)
	}
}

// The light class beside the heavy one, in one run.
func TestBenchBackground(t *testing.T) {
	stdout, stderr, status := run(t, "bench", "--rounds", "1", "--duration", "500ms", "--warmup", "0s", "--op", "GenerateDataKey",
		"--rate", "100", "--background", "Sign:RSA_2048:2")
	if status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{"GenerateDataKey, 64 connections, 100/s", "keymill with background", "background/s", "p99 with Sign:RSA_2048:2 in the background, divided by"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

// A server that is attached to, and one whose answers are errors: no rate is
// quoted then, and nothing is left behind.
func TestBenchEndpoint(t *testing.T) {
	dir := t.TempDir()
	p := serveDaemon(t, "--data", dir, "--quota-profile", "none")
	args := []string{"bench", "--rounds", "1", "--duration", "500ms", "--warmup", "0s", "--op", "Encrypt", "--endpoint", p.endpoint}
	stdout, stderr, status := run(t, append(args, "--credentials", filepath.Join(dir, "credentials"))...)
	if status != 0 || stderr != "" || !strings.Contains(stdout, p.endpoint+" (aws)") {
		t.Errorf("status %d: %s\n%s", status, stderr, stdout)
	}
	wrong := filepath.Join(dir, "wrong")
	if err := os.WriteFile(wrong, []byte("[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(dir, "report.json")
	stdout, stderr, status = run(t, append(args, "--credentials", wrong, "--json", report)...)
	if status != 1 || stdout != "" || !strings.Contains(stderr, "CreateKey: status 400") || !strings.Contains(stderr, "UnrecognizedClientException") {
		t.Errorf("status %d: %s\n%s", status, stderr, stdout)
	}
	if _, err := os.Stat(report); !os.IsNotExist(err) {
		t.Errorf("a report of nothing: %v", err)
	}
}

func TestBenchStartup(t *testing.T) {
	stdout, stderr, status := run(t, "bench", "startup", "--keys", "20", "--rounds", "2", "--use")
	if status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{"20 keys created", "ms until ready: ", "RSS MB when ready", "first uses of keys a second", "RSS MB after them"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

// TestBenchScale fills a store that stays, and goes on with it.
func TestBenchScale(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for i, keys := range []string{"20", "30"} {
		stdout, stderr, status := run(t, "bench", "scale", "--keys", keys, "--data", dir, "--rounds", "1", "--duration", "1s", "--connections", "2")
		if status != 0 || stderr != "" {
			t.Fatalf("status %d: %s", status, stderr)
		}
		for _, want := range []string{"ms until ready: ", "RSS MB when ready: ", "ms for a ListKeys page of 100 out of " + keys, "first GenerateDataKey on each of " + keys + " keys",
			"RSS MB after each key's first use", "one hot key: ", "one of " + keys + " keys at random: ", "random divided by hot: ", "CreateKey a second over 64 connections: "} {
			if !strings.Contains(stdout, want) {
				t.Errorf("no %q in\n%s", want, stdout)
			}
		}
		// The first run's CreateKey makes more than the second needs.
		if created := strings.Contains(stdout, "20 keys created"); created != (i == 0) {
			t.Errorf("run %d created keys: %t", i, created)
		}
	}
}

func TestCommandLine(t *testing.T) {
	got := commandLine([]string{"/some/where/keymill", "bench", "--op", "Sign:RSA_4096", "--serve-flag=a b", "it's", ""})
	if want := `keymill bench --op Sign:RSA_4096 '--serve-flag=a b' 'it'\''s' ''`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
