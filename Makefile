# Keymill. One verb per target; `make` alone builds.

GO       ?= go
VERSION  ?= $(shell git describe --always --dirty 2>/dev/null || echo development)
FUZZTIME ?= 30s
BENCH    ?= .

# Six times is what benchstat needs for an interval at 95 %.
BENCHTIME  ?= 50ms
BENCHCOUNT ?= 6
BENCHED    ?= ./batch ./daemon/kms ./daemon/sigv4 ./daemon/wire ./engine ./hsm/... ./keystore

# Packages where goroutines share state: make test runs these under the race
# detector too. make testrace runs all.
RACE = ./batch/... ./daemon ./daemon/reactor ./daemon/sigv4/... ./daemon/kms/... ./daemon/xks ./engine/... ./hsm/... ./keystore/...

.PHONY: build run demo test testrace prepare bench fuzz lint generate check-generated clean

build:
	$(GO) build -ldflags '-X main.version=$(VERSION)' -o bin/keymill ./tools/keymill

# Serves on 127.0.0.1:4599 with the embedded default; ARGS go to keymill serve.
run: build
	exec bin/keymill serve --data .keymill $(ARGS)

# Envelope-encrypts a file of 100 MB against a running daemon, on the software
# root and on SoftHSM2.
demo: prepare
	$(GO) run ./tools/demo

test: prepare
	$(GO) test ./...
	$(GO) test -race $(RACE)

testrace: prepare
	$(GO) test -race ./...

# What the tests need and can be had without asking.
prepare:
	@tools/prepare.sh

# First the parts by themselves, summarised by benchstat; then a server through
# its socket. Compare runs with: go tool benchstat OLD bin/bench.txt, and with
# bin/keymill bench --compare OLD.
bench: build
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) -count $(BENCHCOUNT) -timeout 1h $(BENCHED) >bin/bench.txt || { cat bin/bench.txt; exit 1; }
	$(GO) tool benchstat bin/bench.txt
	bin/keymill bench --mix storage,signing --rounds 4 --duration 2s --baseline --json bin/bench.json --html bin/bench.html

# Every fuzz target, each for FUZZTIME, from its kept corpus.
fuzz:
	@GO='$(GO)' tools/fuzz.sh $(FUZZTIME)

lint:
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt would change:"; echo "$$files"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test -count=1 ./tools/lint

generate:
	$(GO) generate ./...

# Fails when a generated file is not what its generator makes.
check-generated:
	@sums() { grep -rl --include='*.go' '^// Code generated ' . | sort | xargs cksum; }; \
	before=$$(sums); $(MAKE) -s generate || exit 1; after=$$(sums); \
	[ "$$before" = "$$after" ] || { echo "generated files were stale; make generate has renewed them:"; \
		printf '%s\n%s\n' "$$before" "$$after" | sort | uniq -u | awk '{print "  " $$3}' | sort -u; exit 1; }

clean:
	rm -rf bin
