// Package reactor serves HTTP connections without a goroutine for each.
//
// A request that only needs a processor for a few microseconds is answered where
// it is read: by the goroutine that found the connection readable. That saves,
// for each request, two switches between goroutines, a read that only learns
// that there is nothing yet, three timers, and most wake-ups of threads: a third
// of what a bare fasthttp server spends (BenchmarkServe).
//
// # What is served here
//
// One kind of request: a POST of / in HTTP/1.1 that stays open, whole within
// maxRequest bytes, with a Content-Length and nothing behind it. fasthttp reads
// its head and writes its answer. Everything else (other methods and paths,
// large or chunked bodies, pipelines, Expect, malformed heads, requests that
// dawdle) goes, with the bytes that were read, to the listener [Server.Others],
// which a fasthttp.Server serves with a goroutine for each connection; it stays
// there. So there is one opinion of what is wrong with HTTP, fasthttp's, and no
// request that only this package can read.
//
// # Loops, workers, connections
//
// A loop is an epoll instance with a share of the connections, edge-triggered.
// There is one for each processor. A worker is a goroutine with the buffers of
// one request. One worker at a time runs a loop: it asks for readable
// connections, answers what they sent one after the other, and asks again. When
// there are none it parks on the loop's own descriptor, which Go's netpoll
// watches: an epoll instance is itself readable when it has something to tell.
// Reads and writes are raw system calls, as they do not wait: with ordinary ones a
// data key cost about a fifth more.
//
// A handler that may wait (for a disk, an HSM, a heavy worker, a client that
// does not read) says so with [MayWait] first. Its worker then leaves the loop,
// with the connections still to be looked at, to another worker, finishes its
// request as any goroutine would, and rests until it is needed. A handler that
// waits without a word holds up the connections of its loop, nothing else.
//
// The owner of a connection is who moved its state from idle to busy: the worker
// that serves it, or who closes it for being idle, or for stopping. Only the
// owner touches it:
//
//	event on an idle connection   idle → busy, serve, busy → idle
//	event on a busy one           busy → again: it is not this loop's at the
//	                              moment; its owner, who fails to go from busy to
//	                              idle, reads once more
//	closed, or given to others    stays busy for ever: later events find nothing
//
// No event is lost: the kernel reports each arrival once, while it is reported
// the connection is idle and served, or not, and then somebody is about to look
// at its state. An event may be for nothing: what it told of was read already, or
// its descriptor's number has a new owner. Then the read finds nothing.
//
// A connection that is sent more and more is read so often; then its worker leaves
// the loop too, and a request in that many pieces is for others. So nobody holds a
// loop up by sending. The time for an answer is one for all of it.
//
// A read that did not fill its buffer has emptied the socket, so the next one is
// not tried before the next event (epoll(7), question 9), unless the event also
// told that the client is gone: that it tells only once.
//
// # A worker to follow each
//
// While there are no more connections than processors, nothing is gained by
// putting several in one pass, and the way through two epoll instances costs a
// lone client on the same machine half its requests (the kernel then seems to wake
// the server on another processor than the client's). So each connection has a worker
// that follows it: it reads like any goroutine, in the hands of package net. When
// there are more, those that follow are called: a read deadline in the past ends
// the wait, and they look around for the reason (too many connections, one that is
// late, the end of the server). Whoever calls has made the reason true before, and
// the worker takes the deadline away before it looks, so no call is lost. With few
// connections again, the next request of each makes its worker follow it.
//
// # Rejected
//
// One epoll instance for all loops: the workers contend for it, and a wake-up of
// one wakes others. Blocking in epoll_wait instead of netpoll: the scheduler
// hands the P of a thread over that waits in the kernel, and the server used half
// as much again. Calling Gosched after each pass: it wakes a thread every time.
// Reading HTTP ourselves: a second opinion about what a request is, in front of a
// signature check.
package reactor
