package reactor

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// serveAs in the environment makes the test program a server of its own, with
// this package or without.
const serveAs = "KEYMILL_SERVE_AS"

func TestMain(m *testing.M) {
	if as := os.Getenv(serveAs); as != "" {
		serveAlone(as)
		return
	}
	os.Exit(m.Run())
}

// serveAlone prints its address and serves until its standard input ends.
func serveAlone(as string) {
	answer := []byte(strings.Repeat("x", 350))
	handler := func(ctx *fasthttp.RequestCtx) {
		ctx.SetContentType("application/x-amz-json-1.1")
		ctx.SetBody(answer)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	serve := (&fasthttp.Server{Handler: handler}).Serve
	if as == "reactor" {
		serve = func(ln net.Listener) error {
			s, err := New(ln, Options{Handler: handler, MaxConns: 1024, FirstTimeout: time.Minute, IdleTimeout: time.Minute, WriteTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			return s.Serve()
		}
	}
	go func() { panic(serve(ln)) }()
	fmt.Println(ln.Addr())
	io.Copy(io.Discard, os.Stdin)
}

// BenchmarkServe compares a Server with fasthttp's as it comes, for requests and
// answers as those for a data key, each in a process of its own. CPU-us/op is the
// processor time that the server spends on one.
func BenchmarkServe(b *testing.B) {
	request := []byte(post("Content-Type: application/x-amz-json-1.1\r\nX-Amz-Target: TrentService.GenerateDataKey\r\nX-Amz-Date: 20260101T000000Z\r\n"+
		"Authorization: "+strings.Repeat("a", 200)+"\r\n", strings.Repeat("b", 70)))
	for _, conns := range []int{1, 16, 64} {
		for _, as := range []string{"fasthttp", "reactor"} {
			b.Run(fmt.Sprintf("%s/conns=%d", as, conns), func(b *testing.B) {
				server := exec.Command(os.Args[0])
				server.Env = append(os.Environ(), serveAs+"="+as)
				server.Stderr = os.Stderr
				in, err := server.StdinPipe()
				if err != nil {
					b.Fatal(err)
				}
				out, err := server.StdoutPipe()
				if err != nil {
					b.Fatal(err)
				}
				if err := server.Start(); err != nil {
					b.Fatal(err)
				}
				defer server.Wait()
				defer in.Close()
				addr, err := bufio.NewReader(out).ReadString('\n')
				if err != nil {
					b.Fatal(err)
				}
				load(b, strings.TrimSpace(addr), request, 1, conns) // warm up
				before := processorTime(b, server.Process.Pid)
				b.ResetTimer()
				load(b, strings.TrimSpace(addr), request, b.N, conns)
				b.StopTimer()
				b.ReportMetric((processorTime(b, server.Process.Pid)-before)/float64(b.N), "CPU-us/op")
			})
		}
	}
}

// load sends n requests over a number of connections.
func load(b *testing.B, addr string, request []byte, n, conns int) {
	var clients sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	for range conns {
		clients.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer conn.Close()
			in := bufio.NewReader(conn)
			for left.Add(-1) >= 0 {
				if _, err := conn.Write(request); err != nil {
					b.Error(err)
					return
				}
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					b.Error(err)
					return
				}
				io.Copy(io.Discard, res.Body)
			}
		})
	}
	clients.Wait()
}

// processorTime returns what a process has used, in microseconds: its CPU clock's
// id is its number's complement above three bits.
func processorTime(b *testing.B, pid int) float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		b.Fatal(err)
	}
	return float64(t.Nano()) / 1e3
}
