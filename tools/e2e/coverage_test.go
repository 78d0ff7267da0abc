package e2e

import (
	"flag"
	"fmt"
	"os"
)

// coverage collects what the tests' SDK clients exercise.
var coverage *Coverage

// uncovered are the parts of the service model that no test shows, each with its
// reason. A "*" at the end stands for all that begins so, "* " before a member or
// an error for that of every operation.
var uncovered = map[string]string{
	"* !KMSInternalException":       "a defect of the daemon: tests inject faults below the operations instead",
	"* !DependencyTimeoutException": "the root of trust hangs: tested with a faulty root in daemon/kms",
	"* !KeyUnavailableException":    "the root of trust is away: tested with a faulty root in daemon/kms",

	"ImportKeyMaterial !ExpiredImportTokenException": "takes a day: tested with a clock of its own in daemon/kms",

	"ListGrants !KMSInvalidStateException":   "allowed in every key state, as AWS documents",
	"RetireGrant !KMSInvalidStateException":  "allowed in every key state, as AWS documents",
	"RevokeGrant !KMSInvalidStateException":  "allowed in every key state, as AWS documents",
	"ListRetirableGrants !NotFoundException": "nothing that it names can be missing",

	"GetKeyRotationStatus !KMSInvalidStateException":  "allowed in every key state, as AWS documents",
	"ListKeyRotations !KMSInvalidStateException":      "allowed in every key state, as AWS documents",
	"RotateKeyOnDemand !ConflictException":            "a rotation is due 90 days ahead at least: tested with a clock of its own in daemon/kms",
	"GetKeyRotationStatus >OnDemandRotationStartDate": "shown for milliseconds: tested with a root of trust that waits in daemon/kms",

	"GetKeyRotationStatus !KMSInvalidStateException":  "allowed in every key state, as AWS documents",
	"ListKeyRotations !KMSInvalidStateException":      "allowed in every key state, as AWS documents",
	"RotateKeyOnDemand !ConflictException":            "a rotation is due 90 days ahead at least: tested with a clock of its own in daemon/kms",
	"GetKeyRotationStatus >OnDemandRotationStartDate": "shown for milliseconds: tested with a root of trust that waits in daemon/kms",
}

// wholeRun tells whether all tests of the package have run.
func wholeRun() bool {
	run, skip := flag.Lookup("test.run"), flag.Lookup("test.skip")
	return run.Value.String() == "" && skip.Value.String() == "" && os.Getenv("KEYMILL_TEST_COVERAGE") != "off"
}

// reportCoverage prints what nothing has exercised, and returns the exit code.
func reportCoverage() int {
	missing := coverage.Missing(uncovered)
	if len(missing) == 0 {
		return 0
	}
	fmt.Fprintf(os.Stderr, "FAIL: %d parts of the service model are exercised by no test of this package:\n", len(missing))
	for _, m := range missing {
		fmt.Fprintln(os.Stderr, "  "+m)
	}
	return 1
}
