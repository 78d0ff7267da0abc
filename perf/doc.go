// Package perf measures a server of the AWS KMS API from outside: through its
// socket, with every request freshly signed.
//
// # A measurement
//
//	server, err := perf.StartKeymill(ctx, perf.KeymillOptions{Binary: "bin/keymill"})
//	defer server.Stop()
//	op, _ := perf.OperationByName("Encrypt")
//	bodies, err := op.Prepare(client)          // creates the keys it needs
//	round, err := (&perf.Load{Target: server.Target, Op: op.Op, Bodies: bodies,
//	        Process: server.Process, Conns: 16, ...}).Run(ctx)
//
// A [Load] is a closed loop: each connection is one goroutine that signs,
// writes, reads the answer and goes on. The rate is what comes out, not what
// was asked for, and a stalled server slows its own clients down: that is the
// right question for capacity and for the processor time of a request, the
// wrong one for the latency at a given rate, which needs an open loop.
//
// A [Comparison] alternates rounds on a server and on a bare HTTP server
// ([ServeBare]) that receives the same requests and answers bodies of the same
// size without doing anything. On a shared machine only such ratios of
// neighbouring rounds mean something.
//
// # What is measured
//
// Requests are counted when their answer has arrived inside the measured time.
// A latency runs from the moment at which the connection turned to the request
// until its answer was there; it includes the generator's own signing, one or
// two microseconds. Latencies go into one HDR histogram per connection, with
// three significant digits; they are merged at the end.
//
// The processor time of the server is its process's CPU clock, user and system
// time together, read at both ends of the measured time. What the kernel does
// for it in interrupts is charged to nobody.
//
// The generator shares the machine with the server, so its own cost is kept
// low (no net/http, no allocation per request) and shown.
//
// An answer other than 200 is an error. A round with errors is a failure, see
// [Round.Err]: nobody wants to quote the rate of refusals.
package perf
