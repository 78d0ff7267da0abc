// Compat writes the table of what Keymill offers of the AWS KMS API, from the
// operation table of daemon/kms.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"

	"keymill/daemon/kms"
)

//go:generate go run keymill/tools/compat -out ../../COMPATIBILITY.md

func main() {
	out := flag.String("out", "", "file to write")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		log.Fatal("usage: compat -out FILE")
	}
	if err := os.WriteFile(*out, table(kms.Compatibility()), 0o644); err != nil {
		log.Fatal(err)
	}
}

func table(notes []kms.OperationNote) []byte {
	var b bytes.Buffer
	b.WriteString("<!-- Written by tools/compat (make generate). Change daemon/kms/compat.go instead. -->\n\n" +
		"# Compatibility with AWS KMS\n\n" +
		"What Keymill offers of the AWS KMS API (version 2014-11-01), and where it differs.\n\n" +
		"## What holds for many operations\n\n")
	for _, d := range kms.CommonDifferences {
		fmt.Fprintf(&b, "- %s\n", d)
	}
	b.WriteString("\n## Operations\n\n| Operation | Since | Differences from AWS KMS |\n|---|---|---|\n")
	for _, n := range notes {
		since, differences := n.Since, strings.Join(n.Differences, " ")
		if since == "" {
			since, differences = "not yet", "Answers UnsupportedOperationException."
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", n.Name, since, strings.ReplaceAll(differences, "|", `\|`))
	}
	return b.Bytes()
}
