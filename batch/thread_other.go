//go:build !linux

package batch

import "errors"

func prepareThread(cpu int, o HeavyOptions) error {
	if cpu >= 0 || o.Nice != 0 || o.Policy != PolicyNormal {
		return errors.New("batch: binding threads and lowering their priority is available on Linux only")
	}
	return nil
}

func allowedCPUs() []int { return nil }
