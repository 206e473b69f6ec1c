# Everything a person or a CI job does here has a target; `make help` lists them.

GO        ?= go
MUST      ?= # needs that may not be skipped, e.g. MUST=root,qemu (CI sets all)
MATRIX    ?= # more flags for `vfsmatrix run`, e.g. MATRIX='--impl ours --kernel 6.12'
BENCH     ?= # more flags for `vfsmatrix bench`, e.g. BENCH='--compare old.json'; of bench-guest too
PROVE     ?= # more flags for `vfsmatrix prove`, e.g. PROVE='--only ^transport'
MUTANTS   ?= # packages and flags for `vfsmatrix mutants`, e.g. MUTANTS='idmap --fresh'; no package is all of them
FAULTS    ?= # faults of `make selftest`, e.g. FAULTS='keeps-* hangs'; none is all
DESTDIR   ?=
PREFIX    ?= /usr/local # /usr is where AppArmor's profiles and libvirt look

NFPM        = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
STATIC      = CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w'

.DEFAULT_GOAL := help
.PHONY: help setup build install deb images matrix matrix-full selftest hostile bench bench-guest test unit vet verify-gofmt fix-gofmt verify-docs fix-docs docs test-long prove-defences mutants prove-fuzzing fuzz-smoke fuzz run-fuzz fuzz-coverage clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing (as root, on Debian), or say in one line what to install
	@sh harness/setup.sh

build: ## static binaries: bin/virtiofsd, bin/vfsmatrix, bin/vfsguest
	@mkdir -p bin
	$(STATIC) -o bin/ ./cmd/virtiofsd ./cmd/vfsmatrix ./cmd/vfsguest

# The words in INSTALLED that a file of packaging/ has instead of them.
INSTALLED = sed 's|@PREFIX@|$(strip $(PREFIX))|'
ROOT      = $(DESTDIR)$(strip $(PREFIX))
SHARE     = $(ROOT)/share

install: build ## the daemon, where launchers look for it: make install PREFIX=/usr (and DESTDIR=)
	install -D -m 755 bin/virtiofsd $(ROOT)/libexec/virtiofsd
	install -d $(ROOT)/bin $(SHARE)/qemu/vhost-user $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	ln -sf ../libexec/virtiofsd $(ROOT)/bin/virtiofsd
	install -D -m 644 docs/man/virtiofsd.1 $(SHARE)/man/man1/virtiofsd.1
	$(INSTALLED) packaging/40-virtiofsd.json >$(SHARE)/qemu/vhost-user/40-virtiofsd.json
	bin/virtiofsd --completion bash >$(SHARE)/bash-completion/completions/virtiofsd
	bin/virtiofsd --completion zsh >$(SHARE)/zsh/site-functions/_virtiofsd
	bin/virtiofsd --completion fish >$(SHARE)/fish/vendor_completions.d/virtiofsd.fish
	for d in system user; do \
		install -D -m 644 packaging/virtiofsd@.socket $(ROOT)/lib/systemd/$$d/virtiofsd@.socket; \
		$(INSTALLED) packaging/virtiofsd@.service >$(ROOT)/lib/systemd/$$d/virtiofsd@.service; done

deb: ## a Debian package of the same files: bin/virtiofsd-go_*.deb
	rm -rf bin/deb
	$(MAKE) -s install DESTDIR=$(CURDIR)/bin/deb PREFIX=/usr
	mv bin/deb/usr/share/zsh/site-functions bin/deb/usr/share/zsh/vendor-completions
	gzip -9n bin/deb/usr/share/man/man1/virtiofsd.1
	install -D -m 644 LICENSE bin/deb/usr/share/doc/virtiofsd-go/copyright
	STAGE=bin/deb ARCH=$$($(GO) env GOARCH) VERSION=$$(bin/virtiofsd --version | cut -d ' ' -f 2) $(GO) run $(NFPM) package -f packaging/nfpm.yaml -p deb -t bin/

images: setup build ## guest kernels and initramfs in vm-images/out
	bin/vfsmatrix images

matrix: images ## boot guests, run every scenario, print the table, write the report
	bin/vfsmatrix run $(MATRIX)

matrix-full: images ## the same with every known daemon, the Rust ones included (an hour)
	bin/vfsmatrix run --impl ours,c,rust,rust-next $(MATRIX)

selftest: images ## plant faults in the daemon, one at a time; the claim that names a fault must catch it (15 minutes)
	bin/vfsmatrix selftest $(FAULTS)

hostile: setup build ## attack each daemon as a hostile guest and a hostile front-end would, and print how it fared
	bin/vfsmatrix hostile --impl ours,c,rust

prove-defences: setup build ## remove each defence from the source in turn and see its tests fail (minutes)
	bin/vfsmatrix prove $(PROVE)

mutants: build ## change the source in small ways, one at a time, and see unit tests fail; as root, and goes on where it was ended (hours)
	bin/vfsmatrix mutants $(MUTANTS)

prove-fuzzing: build ## plant mistakes in decoders and rings, one at a time; the fuzz targets must find each within ten minutes (most take seconds)
	bin/vfsmatrix prove --fuzz 10m --only '^mistakes' $(PROVE)

bench: setup build ## measure the daemons in turn and print their ratios
	bin/vfsmatrix bench --impl ours,c,rust --variant no-poll=ours:--poll-us=0 $(BENCH)

bench-guest: images ## the same with fio, git, tar and other programs inside a guest (a quarter of an hour)
	bin/vfsmatrix bench guest --impl ours,c,rust $(BENCH)

# Corpora that grow are kept where go keeps them, and used by the next run; inputs that fail are written to testdata/fuzz of their package.
FUZZPKGS  ?= $(patsubst %/,%,$(dir $(shell grep -rl --include='*_test.go' '^func Fuzz' internal harness)))
FUZZTIME  ?= 1m
FUZZCACHE ?= $(shell $(GO) env GOCACHE)/fuzz/virtiofsd
FUZZLIVE   = bin/vfsmatrix fuzz $(if $(SEED),--seed $(SEED))

fuzz-smoke: FUZZTIME = 1s
fuzz-smoke: build run-fuzz ## every fuzz target for one second and a live daemon for ten: at most two minutes
	@test "$$(id -u)" = 0 && $(FUZZLIVE) --impl ours --time 10s || { test "$$(id -u)" != 0 && echo "fuzz: no live daemon without root"; }
fuzz: FUZZTIME = 1h
fuzz: build run-fuzz ## every fuzz target and the live daemons for an hour each, or longer: make fuzz FUZZTIME=8h
	$(FUZZLIVE) --impl ours,c,rust --time $(FUZZTIME)

run-fuzz: ## the fuzz targets alone, a minute each: make run-fuzz FUZZTIME=10m FUZZPKGS="internal/fuse harness/fuzz"
	@set -e; mkdir -p bin/fuzz; for p in $(sort $(FUZZPKGS)); do b=$(CURDIR)/bin/fuzz/$$(echo $$p | tr / -).test; $(GO) test -vet=off -fuzz . -c -o $$b ./$$p; \
		for t in $$($$b -test.list '^Fuzz'); do echo "== $$p $$t"; \
		run() { { (cd $$p && $$b -test.run '^$$' -test.fuzz "^$$t\$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 10x -test.fuzzcachedir $(FUZZCACHE)/$$p) 2>&1 && echo passed >$$b.ok; } | tee $$b.log; test -e $$b.ok; }; \
		rm -f $$b.ok; run || { grep -q 'context deadline exceeded' $$b.log && ! grep -q 'Failing input' $$b.log && echo "again: go took the end of the time for a failure" && run; } || exit 1; done; done

FUZZCOVER = internal/fuse internal/fuseabi internal/guestmem internal/virtqueue internal/vhostuser
comma := ,
space := $(subst ,, )
fuzz-coverage: ## how much of the decoders, the rings and the protocol the fuzz corpora reach on their own; fails below 90 %
	@mkdir -p bin/fuzz; $(GO) test -run '^Fuzz' -count=1 -coverprofile=bin/fuzz/cover.out -coverpkg=$(subst $(space),$(comma),$(addprefix ./,$(FUZZCOVER))) $(addprefix ./,$(FUZZCOVER)) >bin/fuzz/cover.log || { cat bin/fuzz/cover.log; exit 1; }
	@awk 'NR > 1 { f = $$1; sub(/:.*/, "", f); sub(/\/[^\/]*$$/, "", f); if (!($$1 in n)) { n[$$1] = $$2; p[$$1] = f } if ($$3 > 0) hit[$$1] = 1 } \
		function say(what, got, all) { printf "%-32s %5d of %5d statements  %5.1f %%\n", what, got, all, 100*got/all; if (got < 0.9*all) low = 1 } \
		END { for (k in n) { all[p[k]] += n[k]; sum += n[k]; if (k in hit) { got[p[k]] += n[k]; h += n[k] } } \
		for (q in all) say(q, got[q], all[q]); say("together", h, sum); exit low }' bin/fuzz/cover.out >bin/fuzz/cover.txt; low=$$?; sort bin/fuzz/cover.txt; exit $$low

test: setup vet unit verify-docs ## all tests: vet, staticcheck, unit and integration tests with -race, docs

test-long: setup build ## the long tests: every kind of device in QEMU, a benchmark in a guest, a million files and operations (hours)
	MATRIX_LONG=1 MATRIX_MUST=$(MUST) $(GO) test -count=1 -v -run InQEMU ./harness/qemu
	MATRIX_LONG=1 MATRIX_MUST=$(MUST) $(GO) test -count=1 -v -run InGuest ./harness/bench/guest
	MATRIX_LONG=1 MATRIX_MUST=$(MUST) $(GO) test -count=1 -timeout 6h ./internal/passthrough ./harness/workload

unit: build ## all unit and integration tests with -race, and nothing else
	MATRIX_MUST=$(MUST) $(GO) test -race ./...

.PHONY: escapes
escapes: ## let a hostile serving process try to escape from every mode, and record the results (minutes)
	$(GO) test ./internal/daemon -run 'TestInsider$$' -update -timeout 30m
	$(MAKE) fix-docs

vet: ## go vet, for arm64 too, and staticcheck
	$(GO) vet ./...
	CGO_ENABLED=0 GOARCH=arm64 $(GO) vet ./cmd/virtiofsd ./internal/...
	$(GO) run $(STATICCHECK) ./...

verify-gofmt: ## fail if a file is not formatted
	@bad=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$bad" || { echo "not formatted: $$bad; run 'make fix-gofmt'"; exit 1; }

fix-gofmt: ## format every file
	gofmt -w $$(git ls-files '*.go')

verify-docs: build ## fail if a generated page is out of date
	bin/vfsmatrix docs --check

fix-docs: build ## regenerate the generated pages
	$(GO) test ./internal/config ./cmd/vfsmatrix -run UpToDate -update
	$(GO) test ./internal/sandbox ./internal/daemon -run 'TestGuide|PageIsUpToDate' -update
	bin/vfsmatrix docs

docs: fix-docs ## the same as fix-docs

clean: ## remove what builds and runs leave behind
	rm -rf bin runs vm-images/out
