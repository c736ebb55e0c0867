# `make help` lists what there is. Needs Go, GNU make, git and, for `make race`, a C compiler.

FUZZTIME ?= 30s
TESTFLAGS ?=
SCALE ?= 1000
INSTALL ?= 1
PREFIX ?= /opt/cni
BINDIR ?= /usr/local/bin
MANDIR ?= /usr/local/share/man
UNITDIR ?= /usr/local/lib/systemd/system
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

GOLANGCI_VERSION := v2.12.2
GOLANGCI := bin/tools/golangci-lint-$(GOLANGCI_VERSION)

# program:package of Debian, for what the tests run beside Go; util-linux is always there
TOOLS := ip:iproute2 bridge:iproute2 tshark:tshark nft:nftables
test race: TOOLS += systemd-analyze:systemd

# Debian's packages that e2e-runtimes unpacks
RUNTIMES := containerd runc podman conmon systemd

# an ordinary user's PATH lacks the directory of ip, bridge and nft
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help build man test race twin e2e-runtimes e2e-kernels fuzz lint demo conformance bench bench-add bench-scale tidy-check modules tools install uninstall clean

help: ## this list
	@echo 'usage: make TARGET [VARIABLE=value]'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  FUZZTIME=30s      how long each target is fuzzed, or how often (20000x)'
	@echo '  TESTFLAGS=        more flags for test and race, such as "-run TestV1_14 -v"'
	@echo '  SCALE=1000        how many containers bench-scale makes'
	@echo '  INSTALL=0         only name the missing programs, even as root'
	@echo '  PREFIX=/opt/cni   install mld and mldd into $$(DESTDIR)$$(PREFIX)/bin'
	@echo '  BINDIR, MANDIR, UNITDIR  and the rest into /usr/local/bin, /usr/local/share/man, /usr/local/lib/systemd/system'

# The version says which commit it is; asking git a second time fails where the tree belongs to another user.
build: ## build the static programs bin/mld, bin/mldd and bin/mldctl
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/mld ./plugin
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/mldd ./plugin/mldd
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/mldctl ./plugin/mldctl

man: ## write the manual pages into bin/man
	@rm -rf bin/man
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || date +%s) go run ./plugin/mldctl/man bin/man

test: tools modules ## run all tests; needs no privilege where user namespaces are allowed
	go test -count=1 -timeout 5m $(TESTFLAGS) ./...

race: tools modules ## run all tests under the race detector
	CGO_ENABLED=1 go test -race -count=1 -timeout 10m $(TESTFLAGS) ./...

twin: tools modules ## hold the kernel's listener against ours; wants an idle machine (TWIN_SEED, TWIN_STEPS)
	go test -tags twin -count=1 -p 1 -timeout 60m $(TESTFLAGS) ./e2e/twin

e2e-runtimes: tools modules bin/runtimes ## run it under cnitool, containerd, podman and systemd; as root on Debian, fetches some 50 MB of packages into bin
	cd e2e/runtimes && go mod download && go test -count=1 -timeout 10m -v $(TESTFLAGS) .

# The kernels are Debian's, by the machine's apt, and stay in bin/kernels until make clean.
e2e-kernels: TOOLS += qemu-system-x86_64:qemu-system-x86 xz:xz-utils
e2e-kernels: tools modules ## run it on Linux 5.10, 6.1 and 6.12 in emulated machines; on Debian
	go test -tags kernels -count=1 -timeout 60m -v $(TESTFLAGS) ./e2e/kernels

# Unpacked with what they need and the machine lacks, and not installed: no daemon starts, and nothing of the machine
# changes. Debian's root has links where a package may have a directory. The list of them is in this file.
bin/runtimes: Makefile
	@rm -rf '$@.new' && mkdir -p '$@.new/etc' '$@.new/usr/bin' '$@.new/usr/lib' '$@.new/usr/sbin'
	@cd '$@.new' && ln -s usr/bin usr/lib usr/sbin . && \
	download() { \
		plan=$$(apt-get install -s --no-install-recommends $(RUNTIMES)) && \
		packages=$$(echo "$$plan" | awk '$$1 == "Inst" && $$3 !~ /^\[/ { print $$2 }') && \
		echo apt-get download $$packages && apt-get -o APT::Sandbox::User=root download $$packages; \
	} && { download || { echo 'apt-get update'; apt-get update && download; }; } && \
	for package in *.deb; do \
		test -e "$$package" || continue; \
		dpkg-deb --fsys-tarfile "$$package" | tar -x --keep-directory-symlink && rm "$$package" || exit 1; \
	done
	@rm -rf '$@' && mv '$@.new' '$@'

fuzz: ## fuzz every target in turn for FUZZTIME, until the first failure
	@grep -rEo '^func Fuzz[[:alnum:]_]+' --include='*_test.go' . | sort | \
	sed 's,^\./\(.*\)/[^/]*:func ,\1 ,' | { \
		found=0; \
		while read -r package target; do \
			found=$$((found + 1)); \
			echo "== fuzz $$package $$target for $(FUZZTIME)"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime '$(FUZZTIME)' "./$$package" </dev/null || exit 1; \
		done; \
		test $$found -gt 0 || { echo 'fuzz: no target found' >&2; exit 1; }; \
	}

lint: $(GOLANGCI) ## check with go vet, gofmt and golangci-lint
	go vet ./...
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || \
		{ echo "not formatted, run gofmt -w on:" $$unformatted >&2; exit 1; }
	@# a cache of its own: a shared one names files by their paths in another clone
	GOLANGCI_LINT_CACHE='$(CURDIR)/bin/lint-cache' $(GOLANGCI) run ./...

$(GOLANGCI):
	GOBIN='$(CURDIR)/bin/tools' go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv bin/tools/golangci-lint '$@'

demo: build tools modules ## show it at work in namespaces of its own
	go run ./e2e/demo

conformance: ## write CONFORMANCE.md anew from the tests
	go test -count=1 ./e2e/house -run Conformance -update

bench: ## measure beside gVisor and gopacket, and fail where a goal is missed
	cd mld/listener/gvisor && go run .

bench-add: tools modules ## measure what mld adds to a chain beside its peers, and fail where a goal is missed; wants an idle machine
	go test -run '^$$' -bench '^BenchmarkAdd$$' -benchtime 60x -timeout 10m ./e2e

bench-scale: tools modules ## measure one daemon with SCALE=1000 containers, and fail where a goal is missed; wants an idle machine
	SCALE='$(SCALE)' go test -run '^$$' -bench '^BenchmarkScale$$' -benchtime 1x -timeout 60m ./e2e

tidy-check: ## fail if go.mod or go.sum is not what go mod tidy would write
	go mod tidy -diff

# The lab has no network, and programs are built in it.
modules: ## fetch the Go modules
	go mod download

tools: ## install the programs that the tests call, or name the missing ones
	@missing=''; packages=''; \
	for tool in $(TOOLS); do \
		program=$${tool%%:*}; package=$${tool#*:}; \
		command -v "$$program" >/dev/null && continue; \
		missing="$$missing $$program"; \
		case " $$packages " in *" $$package "*) ;; *) packages="$${packages:+$$packages }$$package" ;; esac; \
	done; \
	test -n "$$missing" || exit 0; \
	install="apt-get install -y --no-install-recommends $$packages"; \
	if [ '$(INSTALL)' = 0 ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "missing:$$missing (package $$packages); as root: $$install" >&2; exit 1; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	echo "$$install"; \
	$$install </dev/null || { echo 'apt-get update'; apt-get update && echo "$$install" && $$install </dev/null; }

# Renamed into place: a program that is running cannot be written to.
install: build man ## install the programs, for CNI and for you, their manual pages, and units for systemd
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(BINDIR)'
	for program in '$(PREFIX)/bin/mld' '$(PREFIX)/bin/mldd' '$(BINDIR)/mldctl'; do \
		to="$(DESTDIR)$$(dirname "$$program")" name="$$(basename "$$program")"; \
		install -m 0755 "bin/$$name" "$$to/.$$name.new" && mv -f "$$to/.$$name.new" "$$to/$$name" || exit 1; \
	done
	for page in bin/man/*; do \
		install -D -m 0644 "$$page" "$(DESTDIR)$(MANDIR)/man$${page##*.}/$$(basename "$$page")" || exit 1; \
	done
	install -d '$(DESTDIR)$(UNITDIR)'
	sed 's,/opt/cni,$(PREFIX),' plugin/deploy/systemd/mldd.service >'$(DESTDIR)$(UNITDIR)/mldd.service'
	install -m 0644 plugin/deploy/systemd/mldd.socket '$(DESTDIR)$(UNITDIR)/mldd.socket'

uninstall: ## remove what install has installed
	@program="$$(readlink -f '$(DESTDIR)$(PREFIX)/bin')/mldd"; \
	running=$$(find /proc/[0-9]*/exe \( -lname "$$program" -o -lname "$$program (deleted)" \) -printf '%h ' 2>/dev/null | sed 's,/proc/\| $$,,g'); \
	test -z "$$running" || echo "warning: $$program is running still: its attachments have a listener until its worker ends, and none" \
		"afterwards. Stop it: systemctl disable --now mldd.socket mldd.service if they are enabled, and else kill $$running" >&2
	rm -f '$(DESTDIR)$(PREFIX)/bin/mld' '$(DESTDIR)$(PREFIX)/bin/mldd' '$(DESTDIR)$(BINDIR)/mldctl'
	rm -f '$(DESTDIR)$(UNITDIR)/mldd.service' '$(DESTDIR)$(UNITDIR)/mldd.socket'
	rm -f '$(DESTDIR)$(MANDIR)/man5/mld.5' '$(DESTDIR)$(MANDIR)/man8/mldd.8' '$(DESTDIR)$(MANDIR)'/man1/mldctl*.1
	@test ! -d '$(DESTDIR)/run/mld' || echo 'left: $(DESTDIR)/run/mld, with the log and what was attached; once no mldd runs: rm -r $(DESTDIR)/run/mld'

clean: ## remove what was built
	rm -rf bin
