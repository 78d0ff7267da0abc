package kms

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"keymill/daemon/reactor"
	"keymill/keystore"
	"keymill/keystore/keystoretest"
)

// What waits for the disk does not hold up a request on another connection that
// needs no disk.
func TestWaitingHoldsUpNobody(t *testing.T) {
	var disk keystoretest.Gate
	h := newHarnessOn(t, func(o keystore.Options) keystore.Options { return o.WithFS(disk.FS()) }, func(*Config) {})
	id, _ := h.newKey(nil)
	other, _ := h.newKey(nil)
	for _, id := range []string{id, other} {
		h.must("GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_256"})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front, err := reactor.New(ln, reactor.Options{
		Handler: h.svc.ServeHTTP, MaxConns: 100, Loops: 1,
		FirstTimeout: time.Minute, IdleTimeout: time.Minute, WriteTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	go front.Serve()
	defer front.Shutdown(t.Context())
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(time.Minute))
		return conn
	}
	answer := func(conn net.Conn) int {
		t.Helper()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	dataKey := func(id string) []byte { return h.request("GenerateDataKey", `{"KeyId":"`+id+`","KeySpec":"AES_256"}`) }
	light := dataKey(id)
	nobody := bytes.Replace(light, []byte(h.key.ID), []byte("AKIAIOSFODNN7NOBODY0"), 1)
	unknown := h.request("DescribeKey", `{"KeyId":"11111111-2222-4333-8444-555555555555"}`)

	dial()
	dial() // so that connections share the loop
	victim := dial()
	for _, tt := range []struct {
		name     string
		requests [][]byte
		full     bool // as many uses as may be are not written
	}{
		{"an unknown access key", [][]byte{nobody}, false},
		{"the same twice", [][]byte{nobody, nobody}, false},
		{"an unknown key", [][]byte{unknown}, false},
		{"the same twice", [][]byte{unknown, unknown}, false},
		{"an unknown alias, twice", [][]byte{dataKey("alias/none"), dataKey("alias/none")}, false},
		{"a change", [][]byte{h.request("TagResource", `{"KeyId":"`+id+`","Tags":[{"TagKey":"a","TagValue":"b"}]}`)}, false},
		{"the first use of a key since uses were written", [][]byte{dataKey(other)}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			light := light
			if tt.full {
				h.svc.usage.flush()
				victim.Write(light)
				answer(victim)
				h.svc.usage.pending.Add(h.svc.usage.most)
				defer h.svc.usage.pending.Add(-h.svc.usage.most)
				light = h.request("DescribeKey", `{"KeyId":"`+id+`"}`) // which is no use
			}
			victim.Write(light)
			if status := answer(victim); status != 200 {
				t.Fatalf("before: %d", status)
			}
			waiting := make([]net.Conn, len(tt.requests))
			for i := range waiting { // with the loop by now
				waiting[i] = dial()
				waiting[i].Write(light)
				answer(waiting[i])
			}
			write := make(chan struct{})
			open := disk.Close()
			go func() { // something that waits for the disk
				defer close(write)
				tx := h.store.NewTxn()
				tx.Put("test/"+tt.name, []byte("x"), 0)
				tx.Commit(t.Context())
			}()
			time.Sleep(50 * time.Millisecond) // it gets there
			for i, r := range tt.requests {
				waiting[i].Write(r)
			}
			time.Sleep(50 * time.Millisecond) // they arrive
			for range 3 {
				victim.Write(light)
				if status := answer(victim); status != 200 {
					t.Errorf("beside it: %d", status)
				}
			}
			open()
			<-write
			for _, conn := range waiting {
				answer(conn)
			}
		})
	}
}
