//go:build !linux

package batch

import "errors"

func prepareThread(cpu, nice int, policy Policy) error {
	if cpu >= 0 || nice != 0 || policy != PolicyNormal {
		return errors.New("batch: binding threads and lowering their priority is available on Linux only")
	}
	return nil
}

func allowedCPUs() []int { return nil }
