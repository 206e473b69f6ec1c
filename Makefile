# Everything a person or a CI job does here has a target; `make help` lists them.

GO        ?= go
MUST      ?= # needs that may not be skipped, e.g. MUST=root,qemu (CI sets all)
MATRIX    ?= # more flags for `vfsmatrix run`, e.g. MATRIX='--impl ours --kernel 6.12'
PROVE     ?= # more flags for `vfsmatrix prove`, e.g. PROVE='--only ^transport'
FAULTS    ?= # faults of `make selftest`, e.g. FAULTS='keeps-* hangs'; none is all
DESTDIR   ?=
PREFIX    ?= /usr/local

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
STATIC      = CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w'

.DEFAULT_GOAL := help
.PHONY: help setup build images matrix matrix-full selftest hostile bench test unit vet verify-gofmt fix-gofmt verify-docs fix-docs docs test-long prove-defences fuzz-smoke fuzz run-fuzz clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing (root, Debian), or say in one line what to install
	@sh harness/setup.sh

build: ## static binaries: bin/virtiofsd, bin/vfsmatrix, bin/vfsguest
	@mkdir -p bin
	$(STATIC) -o bin/ ./cmd/virtiofsd ./cmd/vfsmatrix ./cmd/vfsguest

images: setup build ## guest kernels and initramfs in vm-images/out
	bin/vfsmatrix images

matrix: images ## boot guests, run every scenario, print the table, write the report
	bin/vfsmatrix run $(MATRIX)

matrix-full: images ## the same with every daemon that is known, the Rust ones too (an hour)
	bin/vfsmatrix run --impl ours,c,rust,rust-next $(MATRIX)

selftest: images ## plant faults in the daemon, one at a time: each must be caught by the claim that names it (15 minutes)
	bin/vfsmatrix selftest $(FAULTS)

hostile: setup build ## break the rules of guest and front-end against each daemon, and print what became of it
	bin/vfsmatrix hostile --impl ours,c,rust

prove-defences: setup build ## take each defence out of the source, one by one, and see its tests fail (minutes)
	bin/vfsmatrix prove $(PROVE)

bench: setup build ## measure the daemons in turns and print their ratios
	bin/vfsmatrix bench --impl ours,c,rust

fuzz-smoke: FUZZTIME = 3s
fuzz-smoke: run-fuzz ## every fuzz target for 3 s
fuzz: FUZZTIME = 1h
fuzz: run-fuzz ## every fuzz target for an hour, or for as long as you say: make fuzz FUZZTIME=8h

run-fuzz:
	@set -e; for p in $$($(GO) list ./internal/... ./harness/...); do for t in $$($(GO) test -list '^Fuzz' $$p 2>/dev/null | grep '^Fuzz' || true); do \
		echo "== $$p $$t"; $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) $$p; done; done

test: setup vet unit verify-docs ## all tests: vet, staticcheck, unit and integration tests with -race, docs

test-long: setup build ## the long forms of tests that have one: devices in QEMU in every shape, a million files and operations (hours)
	MATRIX_LONG=1 MATRIX_MUST=$(MUST) $(GO) test -count=1 -v -run InQEMU ./harness/qemu
	MATRIX_LONG=1 MATRIX_MUST=$(MUST) $(GO) test -count=1 -timeout 6h ./internal/passthrough ./harness/workload

unit: build
	MATRIX_MUST=$(MUST) $(GO) test -race ./...

.PHONY: escapes
escapes: ## have a hostile serving process try to get out, in every mode, and write down what came of it (minutes)
	$(GO) test ./internal/daemon -run 'TestInsider$$' -update -timeout 30m
	$(MAKE) fix-docs

vet:
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

verify-gofmt: ## fail if a file is not formatted
	@bad=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$bad" || { echo "not formatted: $$bad; run 'make fix-gofmt'"; exit 1; }

fix-gofmt: ## format every file
	gofmt -w $$(git ls-files '*.go')

verify-docs: build ## fail if a generated page differs from what the tree would generate
	bin/vfsmatrix docs --check

fix-docs docs: build ## write the generated pages anew
	$(GO) test ./internal/config ./cmd/vfsmatrix -run UpToDate -update
	$(GO) test ./internal/config -run UpToDate -update
	$(GO) test ./internal/daemon -run EscapesPageIsUpToDate -update
	bin/vfsmatrix docs

clean: ## remove what builds and runs leave in the tree
	rm -rf bin runs vm-images/out
