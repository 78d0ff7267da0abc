package client_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"keymill/tools/client"
)

// BenchmarkDataKeys asks a daemon for data keys over loopback, 10,000 in a
// request, with everything a real client does: signing, reading, putting the
// blobs together. Client and daemon share the machine; each one's processor time
// is reported on its own.
func BenchmarkDataKeys(b *testing.B) {
	id := newKey(b, &kms.CreateKeyInput{})
	for _, c := range []struct {
		json      bool
		callers   int
		plaintext bool
	}{{false, 1, true}, {false, 2, true}, {false, 4, true}, {false, 2, false}, {true, 2, true}} {
		b.Run(fmt.Sprintf("json=%v/plaintext=%v/callers=%d", c.json, c.plaintext, c.callers), func(b *testing.B) {
			cl := client.NewFromConfig(config, func(o *client.Options) { o.JSON = c.json })
			in := &client.GenerateDataKeysInput{KeyId: id, KeySpec: types.DataKeySpecAes256, NumberOfKeys: client.MaxItems, WithoutPlaintext: !c.plaintext}
			if _, err := cl.GenerateDataKeys(b.Context(), in); err != nil {
				b.Fatal(err)
			}
			server, own := processTime(b, daemon.PID()), processTime(b, os.Getpid())
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			done := make(chan error, c.callers)
			for range c.callers {
				go func() {
					for left.Add(-1) >= 0 {
						out, err := cl.GenerateDataKeys(b.Context(), in)
						if err != nil {
							done <- err
							return
						}
						out.Wipe()
					}
					done <- nil
				}()
			}
			for range c.callers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			keys := float64(b.N) * client.MaxItems
			b.ReportMetric(keys/b.Elapsed().Seconds(), "keys/s")
			b.ReportMetric((processTime(b, daemon.PID())-server)/keys, "server-cpu-ns/key")
			b.ReportMetric((processTime(b, os.Getpid())-own)/keys, "client-cpu-ns/key")
		})
	}
}

// processTime returns a process's processor time in nanoseconds, as Linux
// counts it, in hundredths of a second.
func processTime(b *testing.B, pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip("needs Linux's /proc")
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	user, err := strconv.ParseFloat(f[11], 64)
	if err != nil {
		b.Fatal(err)
	}
	system, err := strconv.ParseFloat(f[12], 64)
	if err != nil {
		b.Fatal(err)
	}
	return (user + system) * 1e7
}
