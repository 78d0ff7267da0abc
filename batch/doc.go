// Package batch holds what the mill hands work around with. It knows nothing of
// cryptography and imports nothing of ours.
//
//	Slots   values that each have one owner at a time; nobody waits for one
//	Lanes   jobs run in batches by whoever submits (flat combining)
//	Heavy   few workers on locked, bound threads, for work that must not be in the way
//	Plan    how many workers and Ps, and on which processors
//
// All are bounded and refuse at once when full ([ErrFull]), run everything they
// have accepted before Close returns, and give a job's panic to its own
// submitter. The protocols are above the types.
//
// # What wins
//
// Measured on a 2-core virtual machine (AMD EPYC, Linux 6.18, Go 1.26.8) shared
// with other work, in a session of its own that the kernel prefers to the others
// (-20 in /proc/self/autogroup); medians of three runs, of which only the ratios
// within a line count. Thousands of jobs a second, and processor time for each
// job in us:
//
//	go test ./batch -run '^$' -bench 'HandOver/(1us|shared1us)' -benchtime 60000x -count 3
//	go test ./batch -run '^$' -bench 'HandOver/(25us|shared20us)' -benchtime 8000x -count 3
//
//	job            submitters   call        channel     gate        combining   pinned workers
//	1 us                    1    924  1.06   528  2.06   871  1.15   910  1.09    13 66
//	                        8   1852  1.08  1023  1.88  1330  1.50  1532  1.22   139 12.6
//	                       64   1814  1.05  1082  1.78  1499  1.29  1323  1.12   597  3.1
//	                      512   1933  1.03  1158  1.57  1351  1.47  1014  1.41   807  2.2
//	25 us                   1     38 26.0     24 45.8     37 26.8     38 26.5     14 77
//	                        8     73 26.8     69 28.5     70 27.8     75 26.2     35 56
//	                       64     70 28.2     70 27.6     68 28.4     72 26.9     46 42
//	                      512     74 26.1     70 27.7     68 28.9     68 28.8     46 42
//	0.1 us and 1 us         1    871  1.15   484  2.07   823  1.21   863  1.14    18 69
//	for each batch          8   1739  1.11  1149  1.63  1262  1.57  1624  1.21   134 12.5
//	                       64   1712  1.14  1221  1.63  1425  1.35  1533  1.29   563  3.2
//	                      512    835  1.19  1036  1.90  1318  1.47  1969  0.96   672  2.3
//	1 us and 20 us          1     46 21.8     34 36.3     45 22.2     46 22.1     12 85
//	for each batch          8     91 21.8     90 22.2     84 23.4     89 22.0     42 46
//	                       64     78 22.1     86 22.7     83 22.4     86 21.2     49 40
//	                      512     92 21.8     86 23.0     76 23.8    292  6.7     54 36
//
// So, for each class of job:
//
//   - Light jobs (symmetric, HMAC, random) are called plainly: nothing beats that
//     at any number of submitters. The daemon does so, and shares state through
//     Slots.
//   - Jobs of 15 to 60 us (P-256, Ed25519, verification) are called plainly too.
//     The way to a locked thread and back costs 15 to 50 us of processor time.
//   - Jobs of 100 us and more that never wait go to Heavy, not because it is
//     faster but for the sake of the others, see below.
//   - Lanes pay when jobs share a cost of 20 us or more and there are many more
//     submitters than lanes: 3 times as many jobs a second at 512. With few, no
//     batch ever forms, and they cost 3 to 20 % over the plain call. Nothing in
//     the daemon's way of a single light request is of that kind.
//   - Heavy's queue is a channel. A lock-free ring in its place (pinned-ring in the
//     benchmark) was 0 to 40 % slower or as much faster, without a pattern: the
//     wake-up of the thread is the cost.
//
// # Light beside heavy
//
// Light jobs of 1 us at 2,000 a second from another process, in us from the
// write of the request; 64 goroutines submitting heavy jobs of pure Go as fast as
// they are done; two runs of 2.5 s each:
//
//	go test ./batch -run '^$' -bench 'LightHeavy' -benchtime 1x
//
//	heavy jobs of 5 ms run by      GOMAXPROCS   light p50          p99              heavy/s
//	nobody                         4               55      87     1131    7987        0    0
//	goroutines                     2            99253  120176   248930  443148      342  310
//	goroutines                     4            77299   76100   232140  342961      354  347
//	goroutines through a gate      4               22      31     2909    3968      292  284
//	1 worker                       3               19      28      131    1142      184  166
//	2 workers                      4               18      27      294    1436      302  301
//	2 workers, bound               4               29      17     3283     164      320  308
//	2 workers, nice 10             4               30      20      458     139      249  299
//	2 workers, nice 19             4               16      34       89     102      304  290
//	2 workers, SCHED_IDLE          4               20      19     1360     294      192  254
//	heavy jobs of 25 us
//	goroutines                     4             5095    5064    10791   10864    67017 64206
//	goroutines through a gate      4               41      54     4114    3897    42766 39912
//	2 workers                      4               60      65     1557    1922    43061 41190
//
// The gate (so many at a time, on their own goroutines; it is only in the tests)
// does less than workers do because Go's threads are interchangeable: a
// thread that has just done a heavy job goes on to a light one, and the operating
// system takes it for one of those that use their processor up. A worker's thread
// never does anything light, so it tells the two apart.
//
// With the collector running 75 times a second (GOGC=20 and 16 KiB of garbage
// for each light job), the pauses for it, from the request to stop to going on,
// in one run:
//
//	heavy jobs of 5 ms run by     light p50    p99    pause p50    max   heavy/s
//	nobody                               91    9110          29   2621         0
//	2 workers                            18    5998         262   6291       311
//	2 workers, bound                     27    8356         262   8389       307
//	2 workers, SCHED_BATCH               51    8326         328   6291       296
//	2 workers, nice 10                   32   12284         262   4194       285
//	2 workers, nice 19                   39   22478         328   8389       241
//	2 workers, SCHED_IDLE               118  174126         328  20972       148
//
// A worker in Go code has to reach a safe point before the world stops. At a low
// priority it may first have to wait for a processor, and everybody with it. In a
// run without preference on the same machine, busy with other processes, light
// p99 was 72 ms beside 2 normal workers, 10 ms when they were bound, 518 ms at
// nice 19 and 1.2 s at SCHED_IDLE. So the recommended default is what [Plan] and the zero
// HeavyOptions say: as many workers as cores (so that heavy work alone gets the
// whole machine), GOMAXPROCS of cores plus workers while they work, normal priority. Binding
// the workers to processors changes nothing that shows on a quiet machine, and
// helped on a busy one (the two then never share a core). A longer time
// slice for them changed nothing and is not offered.
//
// While nothing is heavy, Ps beyond the cores only cost. GenerateDataKey over 16
// connections on the same machine, busy with other work: processor time of a request
// as a multiple of a bare server's with as many Ps as cores, four runs of each in turns
// against daemons that were started with that GOMAXPROCS in their environment:
//
//	keymill bench --op GenerateDataKey --baseline --rounds 2 --endpoint URL --credentials FILE --pid ID
//
//	GOMAXPROCS 2    1.39 to 1.84, median 1.6
//	           3    1.63 to 2.18         1.8
//	           4    1.81 to 2.33         1.9
//
// so whoever owns the process is told when to raise it and when not ([HeavyOptions]).
package batch
