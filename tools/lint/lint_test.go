// Package lint checks what no other tool does: that imports point downward, and
// a few rules of the house that concern every file.
package lint

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const module = "keymill"

// arrows says, room by room, which of our packages it may import: those named and
// what is below them. A room is a package and what is below it, unless a longer
// entry names that; a package may always import its own room. Tests follow the
// same arrows.
//
//	tools -> fuzz -> perf -> daemon -> engine, keystore -> hsm -> batch
//	daemon -> kms -> policy, quota, audit -> sigv4 -> wire
//	          kms -> xks -> sigv4
//	          kms -> reactor
var arrows = map[string][]string{
	"tools":          {"perf", "fuzz", "daemon", "engine", "keystore", "hsm", "batch"},
	"fuzz":           {"perf", "daemon", "engine", "keystore", "hsm", "batch"},
	"perf":           {"daemon", "engine", "keystore", "hsm", "batch"},
	"daemon":         {"daemon", "engine", "keystore", "hsm", "batch"},
	"daemon/kms":     {"daemon/policy", "daemon/quota", "daemon/audit", "daemon/xks", "daemon/reactor", "daemon/sigv4", "daemon/wire", "engine", "keystore", "hsm", "batch"},
	"daemon/xks":     {"daemon/sigv4", "daemon/wire", "engine", "hsm/arena"},
	"daemon/policy":  {"daemon/sigv4", "daemon/wire", "keystore", "hsm/arena"},
	"daemon/quota":   {"daemon/sigv4", "daemon/wire", "keystore", "hsm/arena"},
	"daemon/audit":   {"daemon/sigv4", "daemon/wire", "keystore", "hsm"},
	"daemon/sigv4":   {"daemon/wire", "keystore", "hsm/arena"},
	"daemon/wire":    {},
	"daemon/reactor": {},
	"engine":         {"hsm", "batch"},
	"keystore":       {"hsm", "batch"},
	"hsm":            {"hsm/arena", "batch"},
	"hsm/arena":      {},
	"batch":          {},
}

// fences name the only rooms that may import what begins with a prefix, so that
// no type of it spreads. Tests may, except where the fence says otherwise.
var fences = []struct {
	prefix   string
	rooms    []string
	alsoTest bool
}{
	{"github.com/cockroachdb/pebble", []string{"keystore"}, true},
	{"github.com/miekg/pkcs11", []string{"hsm"}, false},
	{"github.com/valyala/fasthttp", []string{"daemon", "daemon/kms", "daemon/reactor", "perf", "fuzz", "tools"}, true},
	{"net/http", []string{"daemon", "daemon/kms", "daemon/reactor", "daemon/sigv4", "daemon/wire", "daemon/xks", "perf", "fuzz", "tools"}, true},
	{"github.com/aws/", []string{"perf", "tools"}, false},
	{"github.com/spf13/", []string{"tools"}, true},
	{"github.com/knadh/koanf", []string{"tools"}, true},
	{"unsafe", []string{"daemon/kms", "daemon/reactor", "daemon/sigv4", "daemon/wire", "engine", "batch", "hsm", "hsm/arena", "keystore"}, false},
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p goPackage
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// room returns the longest entry of arrows that holds a package of ours.
func room(pkg string) string {
	for r := strings.TrimPrefix(pkg, module+"/"); r != "."; r = path.Dir(r) {
		if _, ok := arrows[r]; ok {
			return r
		}
	}
	return ""
}

// allowed reports whether a package in room from may import pkg.
func allowed(from, pkg string) bool {
	to := strings.TrimPrefix(pkg, module+"/")
	if room(pkg) == from {
		return true
	}
	for _, a := range arrows[from] {
		if a == to || strings.HasPrefix(to, a+"/") {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		from := room(p.ImportPath)
		if from == "" {
			t.Errorf("%s is in none of the rooms; put it into one, or give it arrows in tools/lint", p.ImportPath)
			continue
		}
		tests := append(p.TestImports, p.XTestImports...)
		for _, to := range append(p.Imports, tests...) {
			if strings.HasPrefix(to, module+"/") && !allowed(from, to) {
				t.Errorf("%s imports %s, against the arrows", p.ImportPath, to)
			}
		}
		for _, f := range fences {
			imports := p.Imports
			if f.alsoTest {
				imports = append(imports, tests...)
			}
			for _, to := range imports {
				if strings.HasPrefix(to, f.prefix) && !contains(f.rooms, from) {
					t.Errorf("%s imports %s, which only %s may", p.ImportPath, to, strings.Join(f.rooms, ", "))
				}
			}
		}
	}
}

// The check itself finds a wrong arrow.
func TestArrowsPointDownward(t *testing.T) {
	for _, wrong := range [][2]string{
		{"engine", "daemon/wire"}, {"engine", "keystore"}, {"keystore", "engine"}, {"hsm", "keystore"}, {"hsm/arena", "hsm"},
		{"batch", "hsm/arena"}, {"daemon/wire", "daemon/sigv4"}, {"daemon/kms", "daemon"}, {"daemon", "tools/keymill"}, {"perf", "tools"},
		{"daemon/sigv4", "daemon/kms"}, {"keystore", "daemon"}, {"daemon/xks", "daemon/kms"}, {"daemon/xks", "keystore"},
	} {
		if allowed(wrong[0], module+"/"+wrong[1]) {
			t.Errorf("%s may import %s", wrong[0], wrong[1])
		}
	}
	for _, right := range [][2]string{{"engine", "batch"}, {"engine", "hsm/arena"}, {"daemon", "daemon/kms"}, {"tools", "daemon/wire"}, {"hsm", "hsm/pkcs11"}} {
		if !allowed(right[0], module+"/"+right[1]) {
			t.Errorf("%s may not import %s", right[0], right[1])
		}
	}
}

const maxLines = 900

// House rules for every Go file: of a readable size, finished by its own word,
// and free of paths of somebody's machine.
func TestFiles(t *testing.T) {
	// In pieces, or this file would break the rules itself.
	unfinished := []string{"TO" + "DO", "FIX" + "ME", "X" + "XX"}
	machine := []string{"/wor" + "k/", "/ro" + "ot/", "/ho" + "me/", "/tmp/pl" + "an"}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch base := d.Name(); {
		case d.IsDir() && (base == "node_modules" || base == "bin" || base == ".keymill" || base == ".git"):
			return filepath.SkipDir
		case d.IsDir() && base == "util":
			t.Errorf("%s: a package is named after what it does", name)
		case d.IsDir():
			return nil
		}
		kind := filepath.Ext(name)
		if kind != ".go" && kind != ".md" && kind != ".sh" && kind != ".yml" && kind != ".mjs" && d.Name() != "Makefile" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(text), "\n") {
			for _, m := range machine {
				if strings.Contains(line, m) {
					t.Errorf("%s:%d: a path of one machine: %s", name, i+1, m)
				}
			}
			for _, u := range unfinished {
				if kind == ".go" && strings.Contains(line, u) && !strings.Contains(line, u+"X") {
					t.Errorf("%s:%d: unfinished by its own word: %s", name, i+1, u)
				}
			}
		}
		generated := bytes.HasPrefix(text, []byte("// Code generated "))
		if n := bytes.Count(text, []byte("\n")); kind == ".go" && !generated && n > maxLines {
			t.Errorf("%s: %d lines; two things in one file?", name, n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}
