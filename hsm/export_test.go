package hsm

import "time"

// For the tests in package hsm_test, which cannot be in this package because package
// hsmtest imports it.

type (
	FileSystem = fileSystem
	SyncFile   = syncFile
	OSFiles    = osFiles
)

const (
	KeyFileEntry = keyFileEntry
	MaxKeyFile   = maxKeyFile
)

// WithFiles replaces the file system.
func (o SoftwareOptions) WithFiles(f FileSystem) SoftwareOptions {
	o.files = f
	return o
}

// Govern runs a governor against a token that does rate(w) tasks a second over w
// sessions, for so many epochs in simulated time, and returns the mean of what it got
// over the second half. alone is what the self test measured, 0 for nothing; failAt is an epoch in which the token fails; -1 is none.
func Govern(sessions, epochs, failAt int, alone time.Duration, rate func(width int) float64) (mean float64, width int) {
	g := newGovernor(sessions, alone)
	now := time.Unix(1, 0)
	done, spent := 0.0, 0.0
	for e := range epochs {
		if e == failAt {
			g.failed(now)
		}
		for end := now.Add(epochTime); now.Before(end); {
			r := rate(g.width)
			step := time.Duration(float64(time.Second) / r)
			if e >= epochs/2 {
				done, spent = done+1, spent+step.Seconds()
			}
			now = now.Add(step)
			g.finished(1, time.Duration(float64(g.width)*float64(time.Second)/r), true, now)
		}
	}
	return done / spent, g.width
}
