package main

import (
	"bytes"
	"os"
	"testing"

	"keymill/daemon/kms"
)

// COMPATIBILITY.md says what the operation table says.
func TestTableIsCurrent(t *testing.T) {
	have, err := os.ReadFile("../../COMPATIBILITY.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, table(kms.Compatibility())) {
		t.Error("COMPATIBILITY.md is outdated: run make generate")
	}
}
