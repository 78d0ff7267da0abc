// Package perf measures key servers from outside: through their socket, with
// every request freshly signed. The command is keymill bench.
//
// # A measurement
//
//	server, err := perf.StartKeymill(ctx, perf.KeymillOptions{Binary: "bin/keymill", Dir: dir})
//	defer server.Stop()
//	op, err := perf.ParseOperation("Encrypt")
//	workload, err := perf.AWS{}.Prepare(ctx, server.Target, perf.Single(op), perf.DefaultShape, 16)
//	round, err := (&perf.Load{Target: server.Target, Workload: workload, Process: server.Process, Conns: 16, ...}).Run(ctx)
//
// An [API] is the dialect of a server: AWS KMS, which is Keymill's too, the
// transit engine of OpenBao and Vault, or MinIO KES. It makes keys and
// ciphertexts on the server and returns a [Workload], which makes the requests.
//
// # Closed and open loops
//
// Without a rate, a [Load] is a closed loop: each connection is one goroutine
// that signs, writes, reads the answer and goes on. The rate is what comes out,
// not what was asked for, and a stalled server slows its own clients down: that
// is the right question for capacity and for the processor time of a request,
// the wrong one for the latency at a given rate.
//
// With a rate it is an open loop: requests are due at even intervals, the
// connections take them in turn, and a latency begins when its request was due,
// not when a connection was free to send it. What could not be sent before the
// end is counted with the time it had waited until then. How late requests were
// sent although a connection was free is measured too: that is the generator's
// own delay, and part of the latencies.
//
// # Comparisons
//
// [Alternate] takes turns between loads. On a shared machine only ratios of
// neighbouring rounds mean something: to a bare HTTP server ([ServeBare]) that
// receives the same requests and answers bodies of their mean size without
// doing anything; of a load with another in the background to the same without.
// [MeasurePrimitives] says what the machine could compute if there were no
// server at all. [Changes] compares two runs with the statistics of benchstat.
//
// # What is measured
//
// In a closed loop, requests are counted when their answer has arrived inside the
// measured time, and a latency runs from the moment at which the connection
// turned to the request; it includes the generator's own signing, one or two
// microseconds. Latencies go into HDR histograms with three significant digits,
// one per connection up to 64; they are merged at the end.
//
// The processor time of the server is its process's CPU clock, user and system
// time together, read at both ends of the measured time, and those of the
// processes it has started, such as the one that holds an HSM's module. What the
// kernel does for it in interrupts is charged to nobody.
//
// The generator shares the machine with the server, so its own cost is kept
// low (no net/http, no allocation per request) and shown.
//
// An answer other than 200 is an error, and so is an item of a bulk answer that
// failed. A round with errors is a failure, see [Round.Err]: nobody wants to
// quote the rate of refusals.
package perf
