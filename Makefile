# Keymill. One verb per target; `make` alone builds.

GO       ?= go
VERSION  ?= $(shell git describe --always --dirty 2>/dev/null || echo development)
FUZZTIME ?= 30s
BENCH    ?= .

# Packages where goroutines share state: make test runs these under the race
# detector too. make testrace runs all.
RACE = ./batch/... ./daemon ./daemon/sigv4/... ./daemon/kms/... ./engine/... ./hsm/... ./keystore/...

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

# Compare runs with: go tool benchstat OLD NEW
bench:
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

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
