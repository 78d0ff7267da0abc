package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"keymill/daemon"
)

func load(t *testing.T, environ []string, args ...string) (daemon.Config, []string, error) {
	t.Helper()
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	addFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return loadConfig(fs, environ)
}

// Every option, in each of its types, follows flag > environment > file > default.
func TestPrecedence(t *testing.T) {
	values := func(o *daemon.Option, source string) (text, yaml string) {
		var c daemon.Config
		switch o.Field(&c).(type) {
		case *bool:
			return "true", "true"
		case *int:
			n := strconv.Itoa(len(source))
			return n, n
		case *[]string:
			return source + ",second", "[" + source + ", second]"
		}
		return source, source
	}
	for i := range daemon.Options {
		o := &daemon.Options[i]
		t.Run(o.Name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "keymill.yml")
			_, yaml := values(o, "file")
			if err := os.WriteFile(file, []byte(o.Name+": "+yaml+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			text, _ := values(o, "env")
			env := o.Env() + "=" + text
			text, _ = values(o, "flag")
			flag := "--" + o.Name + "=" + text

			def := daemon.DefaultConfig()
			for _, tt := range []struct {
				source  string
				environ []string
				args    []string
			}{
				{"", nil, nil},
				{"file", nil, []string{"--config", file}},
				{"file", []string{configEnv + "=" + file}, nil},
				{"env", []string{env}, []string{"--config", file}},
				{"flag", []string{env}, []string{"--config", file, flag}},
				{"", []string{o.Env() + "="}, nil}, // an empty variable is an absent one
			} {
				got, warnings, err := load(t, tt.environ, tt.args...)
				if err != nil || len(warnings) > 0 {
					t.Fatalf("%s: %v, %v", tt.source, err, warnings)
				}
				want := def
				if tt.source != "" {
					switch f := o.Field(&want).(type) {
					case *bool:
						*f = true
					case *int:
						*f = len(tt.source)
					case *string:
						*f = tt.source
					case *[]string:
						*f = []string{tt.source, "second"}
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: %s", tt.source, diff)
				}
			}
		})
	}
}

// A value given in a place of higher rank wins also when it is the default.
func TestDefaultValueGivenExplicitly(t *testing.T) {
	got, _, err := load(t, []string{"KEYMILL_INSECURE_HTTP=true", "KEYMILL_REGION=eu-west-1"}, "--insecure-http=false", "--region", daemon.DefaultRegion)
	if err != nil {
		t.Fatal(err)
	}
	if got.InsecureHTTP || got.Region != daemon.DefaultRegion {
		t.Errorf("insecure-http %v, region %s", got.InsecureHTTP, got.Region)
	}
}

func TestEnvironment(t *testing.T) {
	_, warnings, err := load(t, []string{
		"KEYMILL_LISTN=x", "KEYMILL_ROOT_ACCESS_KEY_ID=a", "KEYMILL_ROOT_SECRET_ACCESS_KEY=topsecret", "KEYMILL_TEST_X=1", "KEYMILLX=1", "PATH=/bin",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "KEYMILL_LISTN") {
		t.Errorf("warnings: %q", warnings)
	}
	for text, want := range map[string]bool{"1": true, "YES": true, "true": true, "0": false, "no": false, "False": false} {
		got, _, err := load(t, []string{"KEYMILL_INSECURE_ADMIN=" + text})
		if err != nil || got.InsecureAdmin != want {
			t.Errorf("%s: %v, %v", text, got.InsecureAdmin, err)
		}
	}
	if _, _, err := load(t, []string{"KEYMILL_INSECURE_ADMIN=perhaps"}); err == nil || !strings.Contains(err.Error(), "KEYMILL_INSECURE_ADMIN") {
		t.Errorf("a truth value that is none: %v", err)
	}
}

// The sample files: working ones load and validate, busted ones are refused with
// an error that says what their last comment line promises.
func TestSampleFiles(t *testing.T) {
	working, _ := filepath.Glob("testdata/working_*.yml")
	busted, _ := filepath.Glob("testdata/busted_*.yml")
	if len(working) == 0 || len(busted) == 0 {
		t.Fatal("no sample files")
	}
	for _, path := range slices.Concat(working, busted) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			conf, _, err := load(t, []string{"HOME=/nowhere"}, "--config", path)
			if err == nil {
				if conf.Data == "" {
					conf.Data = "somewhere" // the tester may have no home
				}
				err = conf.Validate()
			}
			if strings.HasPrefix(filepath.Base(path), "working_") {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			text, rerr := os.ReadFile(path)
			if rerr != nil {
				t.Fatal(rerr)
			}
			wants := 0
			for line := range strings.Lines(string(text)) {
				if want, ok := strings.CutPrefix(strings.TrimSpace(line), "# error: "); ok {
					wants++
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not say %q", err, want)
					}
				}
			}
			if wants == 0 {
				t.Errorf("%s does not say which error it expects", path)
			}
		})
	}
	if _, _, err := load(t, nil, "--config", "testdata/missing.yml"); err == nil || !strings.Contains(err.Error(), "missing.yml") {
		t.Errorf("a missing file: %v", err)
	}
}

// What --print-config prints gives the same configuration again.
func TestPrintConfigReplays(t *testing.T) {
	odd := daemon.DefaultConfig()
	odd.Data, odd.Account, odd.HSMToken = "/with space: and #", "000000000012", "yes"
	odd.Regions, odd.InsecureHTTP, odd.Listen = []string{"eu-west-1", "us-west-2"}, true, "unix:/run/k.sock"
	for _, want := range []daemon.Config{daemon.DefaultConfig(), odd} {
		var out bytes.Buffer
		if err := printConfig(&out, want); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "printed.yml")
		if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		got, _, err := load(t, nil, "--config", file)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Regions) == 0 {
			got.Regions = nil
		}
		if len(got.ForbidProvider) == 0 {
			got.ForbidProvider = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// FuzzConfigFile: whatever a file holds, it is refused or gives a configuration
// that --print-config prints as a file for the same one.
func FuzzConfigFile(f *testing.F) {
	samples, _ := filepath.Glob("testdata/*.yml")
	for _, path := range samples {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	file := filepath.Join(f.TempDir(), "keymill.yml")
	f.Fuzz(func(t *testing.T, text []byte) {
		read := func(text []byte) (daemon.Config, error) {
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			got, _, err := load(t, nil, "--config", file)
			if len(got.Regions) == 0 {
				got.Regions = nil
			}
			if len(got.ForbidProvider) == 0 {
				got.ForbidProvider = nil
			}
			return got, err
		}
		want, err := read(text)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := printConfig(&out, want); err != nil {
			t.Fatal(err)
		}
		got, err := read(out.Bytes())
		if err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}
