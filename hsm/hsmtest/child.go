package hsmtest

import (
	"fmt"
	"os"
	"os/exec"

	"keymill/hsm"
)

// childEnv makes a test binary serve as the process that has the module loaded.
const childEnv = "KEYMILL_TEST_HSM_CHILD"

// MaybeChild serves as the HSM process, and does not return, when this test binary was
// started as one. A package whose tests use Child calls it first in TestMain.
func MaybeChild() {
	if os.Getenv(childEnv) == "" {
		return
	}
	conn, err := hsm.ChildConn()
	if err == nil {
		err = hsm.ServeChild(conn)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hsm process:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Child is a PKCS11Config.Child: the test binary itself, with nothing written to
// standard error, where a crash that is part of a test would look like one that is not.
func Child() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	return cmd
}
