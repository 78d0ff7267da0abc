// Package e2e runs the real keymill binary and speaks to it with clients that
// nobody here wrote.
//
// The exported part is the rig: [Build] makes the binary, [Start] runs it on
// free ports and a data directory of the caller's, and [Daemon] stops it, kills
// it and starts it again. [NewToken] makes a SoftHSM2 token for a daemon whose
// root is a PKCS#11 module. The rig does not depend on package testing, so that
// tools/demo uses it too.
//
// The tests are stories about one daemon. Most share one, each in a region of
// its own: a region is a namespace, so what one test makes no other test lists.
// Tests that stop, kill or configure a daemon start their own.
//
// # Clients
//
// The AWS SDK for Go v2 is a dependency and always runs. The AWS SDK for
// JavaScript v3 and the AWS Encryption SDK for JavaScript run when node is
// installed and "npm ci" has been done in tools/e2e/node; the aws command runs
// when it is on the machine; SoftHSM2 when its package is. What is absent is
// skipped with a line that says what would install it, and is an error when
// KEYMILL_TEST_REQUIRE names it (a list of node, aws, softhsm, or "all").
//
// # Settings
//
// KEYMILL_TEST_BINARY names a keymill to test in place of one built from here.
// TestKill runs [killRounds] rounds; KEYMILL_TEST_KILL_ROUNDS changes that.
package e2e
