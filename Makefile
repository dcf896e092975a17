# `make` lists the targets. `sudo make lab` and `sudo make test` work on a fresh Debian 12 machine with Go.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# sudo drops PATH, and with it the place where Go's own instructions put it.
GO ?= $(shell PATH="$$PATH:/usr/local/go/bin" command -v go 2>/dev/null)
GO_WANTED := $(shell sed -n 's/^go //p' go.mod)
export PATH := $(if $(GO),$(dir $(GO)):)$(PATH):/usr/sbin:/sbin

# Every folder of cmd/ that holds Go files is a program.
PROGRAMS := $(sort $(dir $(wildcard cmd/*/*.go)))
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# Nobody looks at gRPC's traces, and their templates keep the linker from leaving out methods that nothing calls: a fifth of the agent.
TAGS     := grpcnotrace

# Packages that compute and do nothing else (test/arch/layers.go has the same list, and a test that compares them).
PURE := internal/attach internal/hostside internal/kernel internal/members internal/nftable internal/peering internal/plan internal/policy internal/probe internal/ruleset pkg/api pkg/ipam/block pkg/selector
PURE_PRESENT := $(sort $(dir $(wildcard $(PURE:%=%/*.go))))

GOLANGCI_LINT := $(GO) tool -modfile=test/tools/go.mod golangci-lint
TEST_TIMEOUT ?= 25m
FUZZTIME     ?= 10m
CASES        ?= 100000
OPERATIONS   ?= 2000

.PHONY: help build image lab test test-faults test-vm vm test-k8s k8s check policycheck modelcheck sim fuzz lint vulncheck bench bench-policy golden clean deps deps-test deps-vm deps-bgp deps-k8s need-go need-root need-cc

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: need-go ## Build every program of cmd/ into bin/
	@mkdir -p bin
	$(if $(PROGRAMS),CGO_ENABLED=0 $(GO) build -tags '$(TAGS)' -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS:%/=./%),@echo "cmd/ holds no programs")
	@ln -sfn muslin bin/calico && ln -sfn muslin-ipam bin/calico-ipam # the names in a host's configuration for Calico
	@[ "$$(id -u)" != 0 ] || chown -R --reference=. bin # after sudo make, its owner can still build in this folder

# The CNI project's plugins go into the agent's image, for it puts them on hosts. IMAGE_PREFIX names a registry and a project in front of the images' names.
IMAGE_PREFIX ?= muslin
image: need-go build ## Make container images in dist/, with an SPDX document each, for `ctr images import` or `docker load`; no daemon needed
	@mkdir -p dist/plugins
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -modfile=test/cniplugins/go.mod -ldflags '-s -w' -o dist/plugins/ tool
	$(GO) run -buildvcs=false ./test/image -bin bin -plugins dist/plugins -cache dist/debian -out dist -version '$(VERSION)' -prefix '$(IMAGE_PREFIX)'

lab: need-root need-go deps build ## Bring up three nodes on this machine, show that their pods reach each other, tear down (root)
	bin/muslin-lab demo

test: need-root need-go deps deps-test deps-vm deps-bgp build ## Run every test (root: most of them make network namespaces)
	NETTEST=require $(GO) test -count=1 -p 2 -timeout $(TEST_TIMEOUT) ./...

test-vm: need-root need-go deps deps-vm build ## Run, in one boot of a virtual machine, the tests that need its kernel (root)
	NETTEST=require $(GO) test -count=1 -v -timeout $(TEST_TIMEOUT) ./test/vm

vm: need-root need-go deps deps-vm build ## Run a command there: make vm CMD='bin/muslin-lab demo' (root)
	@$(GO) run -buildvcs=false ./test/vm bash -c "$$CMD"

# OPERATIONS (2000) ADDs and DELs of pods at least are given while something is broken; the end counts them, and how long each fault was felt. SEED repeats a run: it is printed in front of each. Of the same faults `make test` has the short form.
test-faults: need-root need-go deps deps-test build ## Kill every program at every fault point, and break etcd and the kernel in every way, under pods that come and go (root; up to half an hour)
	@seed=$(or $(SEED),$$RANDOM$$RANDOM); echo "SEED=$$seed"; \
	NETTEST=require $(GO) test -count=1 -timeout 40m -v -run '^TestFaults$$' ./test/e2e -operations=$(OPERATIONS) -faultseed=$$seed

# RUN chooses among them by a regular expression: Iptables and Nftables are walks of an operator, KubernetesSpecs/policy and KubernetesSpecs/conformance what
# Kubernetes brings along. RECORD=1 writes what they show into test/k8s/RESULTS.md.
test-k8s: need-root need-go deps deps-test deps-k8s image ## Run the tests that need a real Kubernetes, and Kubernetes' own (RUN=Iptables|Nftables|KubernetesSpecs chooses; RECORD=1 keeps the results; root; the first time 15 minutes more, to build it)
	NETTEST=require MUSLIN_K8S=$(if $(RECORD),record,1) $(GO) test -count=1 -v -timeout 90m -run '$(RUN)' ./test/k8s

k8s: need-root need-go deps deps-test deps-k8s image ## Bring up such a cluster and work on it: make k8s CMD='up', CMD='kubectl get pods -A', CMD='down' (root)
	@$(GO) run -buildvcs=false ./test/k8s $(CMD)

check: need-go need-cc ## Format, vet, lint, layers, and pure packages under the race detector: before every commit
	@unformatted=$$("$$($(GO) env GOROOT)/bin/gofmt" -l $(wildcard cmd internal pkg test)); \
	  [ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; } >&2
	$(GO) vet ./...
	$(GOLANGCI_LINT) run
	$(GO) test -count=1 ./test/arch
	$(if $(PURE_PRESENT),$(GO) test -race $(PURE_PRESENT:%/=./%))

# Of the same tests `make test` runs 10,000 cases with fixed seeds each. SEED repeats a run: it is printed in front of each.
policycheck: need-root need-go ## Judge policy by its documented semantics: CASES (100000) packets by model and in the kernel, random seeds (root)
	@seed=$(or $(SEED),$$RANDOM$$RANDOM); echo "SEED=$$seed"; \
	NETTEST=require $(GO) test -count=1 -timeout 60m -v ./test/policyjudge -clusters=$$(($(CASES) / 8)) -seed=$$seed -kernel=$(CASES) -kernelseed=$$seed

# Of the same, `make test` explores the short list and makes histories of four seconds. SEED repeats a history; what is explored does not depend on it.
modelcheck: need-go ## Explore address management in every order of events, for LONG (8m) at most, then hold histories of a real etcd to linearizability
	$(GO) test -count=1 -timeout 60m -v ./test/modelcheck -long=$(or $(LONG),8m) -seed=$(or $(SEED),$$RANDOM)

# A run is its seed: it is printed in front of each, and whatever breaks is shown again by it.
sim: need-go ## Simulate a cluster whatever goes wrong in it: SEED (random), NODES (60), OPS (100000)
	@seed=$(or $(SEED),$$((1 + RANDOM * 32768 + RANDOM))); echo "SEED=$$seed NODES=$(or $(NODES),60) OPS=$(or $(OPS),100000)"; \
	$(GO) test -count=1 -timeout 120m -v ./test/sim -run '^TestSeed$$' -seed=$$seed -nodes=$(or $(NODES),60) -ops=$(or $(OPS),100000)

# One target at a time, each for FUZZTIME; what breaks one is written below its package's testdata/fuzz, to be committed as a regression test.
fuzz: need-go ## Run every fuzz target for FUZZTIME (10m) each, one after the other
	@failed=(); \
	while IFS=: read -r file target; do \
	  echo "== $$target in $$(dirname "$$file")"; \
	  $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x -parallel 1 "./$$(dirname "$$file")" </dev/null || failed+=("$$file:$$target"); \
	done < <(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cmd internal pkg test | sed 's/:func /:/' | sort); \
	[ $${#failed[@]} -eq 0 ] || { echo "failed: $${failed[*]}" >&2; exit 1; }

lint: need-go ## Run golangci-lint at the version that test/tools/go.mod pins
	$(GOLANGCI_LINT) run

# It asks the database that Go's project keeps, or the one that GOVULNDB names, and fails where one of our calls reaches what is known to be broken. First it asks about
# one small package: where the database is out of reach that ends within a minute of the program being built.
GOVULNCHECK = $(GO) tool -modfile=test/tools/go.mod govulncheck $(if $(GOVULNDB),-db '$(GOVULNDB)')
vulncheck: need-go ## Hold our calls against the Go vulnerability database (needs the network, or GOVULNDB=file:///folder)
	@timeout 5m $(GO) tool -modfile=test/tools/go.mod -n govulncheck >/dev/null 2>&1 || true; status=0; \
	said="$$(timeout 1m $(GOVULNCHECK) ./internal/fault 2>&1)" || status=$$?; \
	if [ $$status != 0 ] && [ $$status != 3 ]; then \
	  echo "NOT checked for known vulnerabilities, their database cannot be asked: $${said:-no answer within a minute}" >&2; \
	  echo "GOVULNDB=file:///folder names a copy of it" >&2; \
	  exit 1; \
	fi; \
	timeout 20m $(GOVULNCHECK) ./... || { echo "govulncheck failed: it names above what to update" >&2; exit 1; }

# RECORD=1 keeps the page in test/bench/RESULTS.md, with commit, date and machine. BENCH chooses parts, e.g. BENCH='-serial -memory': see BENCH=-h. BENCH=-profile
# says where the time of an ADD goes.
bench: need-root need-go deps deps-bgp build ## Measure everything that has a figure to reach, against floors: a quarter of an hour on a quiet machine (RECORD=1 keeps it, BENCH chooses; root)
	$(GO) run -buildvcs=false ./test/bench $(if $(RECORD),-record) $(BENCH)

# Compiling policy, one change of it, its way into the kernel, and what it costs a packet: see the benchmarks of these names.
bench-policy: need-root need-go
	$(GO) test -run '^$$' -timeout 60m -bench 'FullCompile|OneLabel|OnePolicy|OnePod' -benchtime 10x ./internal/policy
	$(GO) test -run '^$$' -timeout 60m -bench PolicyToKernel -benchtime 1000x ./internal/agent
	$(GO) test -run '^$$' -timeout 60m -bench Packets -benchtime 40x ./internal/nft

# A package that takes part registers -update in its tests and has Golden in the names of those that heed it.
golden: need-go ## Rewrite golden files and the package table; read the diff as the change of behaviour
	@packages=$$(grep -rlE --include='*_test.go' 'flag\.Bool(Var)?\(.*"update"' . | xargs -r -n1 dirname | sort -u); \
	  set -x; $(GO) test -count=1 $$packages -run Golden -update

clean: ## Remove what the other targets made in this folder
	rm -rf bin dist

# program:package of what the agent, labs and tests call, or file:package. (The certificates are for go, which fetches modules.)
DEPS := iptables:iptables ip:iproute2 ipset:ipset nft:nftables /etc/ssl/certs/ca-certificates.crt:ca-certificates

# What tests alone call.
deps-test: DEPS := ethtool:ethtool sysctl:procps ping:iputils-ping systemd-analyze:systemd

# The same for the virtual machine. It fetches its kernel itself, for that must not be installed.
deps-vm: DEPS := qemu-system-x86_64:qemu-system-x86 modprobe:kmod

# The routers that BGP is tested against. Installed as usual they would start to run on this machine.
deps-bgp: DEPS := bird:bird2 /usr/lib/frr/bgpd:frr

# What nodes of test/k8s run beside Kubernetes, and what its images are packed from.
deps-k8s: DEPS := etcd:etcd-server containerd:containerd runc:runc busybox:busybox-static nc.openbsd:netcat-openbsd curl:curl conntrack:conntrack dig:bind9-dnsutils

# While it is there, no package starts a service when it is installed.
POLICY_RC := /usr/sbin/policy-rc.d

# Dpkg::Use-Pty=0 lets dpkg's own errors through, while its progress goes nowhere.
deps: ## Install by apt what labs and tests need and this machine lacks (root); deps-test, deps-vm, deps-bgp, deps-k8s: the same for tests
deps deps-test deps-vm deps-bgp deps-k8s:
	@missing=(); \
	for dep in $(DEPS); do \
	  what=$${dep%%:*}; \
	  [ -e "$$what" ] || command -v "$$what" >/dev/null || missing+=("$${dep##*:}"); \
	done; \
	[ $${#missing[@]} -gt 0 ] || exit 0; \
	command -v apt-get >/dev/null || { echo "missing: $${missing[*]}; this machine has no apt-get to install them with" >&2; exit 1; }; \
	[ "$$(id -u)" = 0 ] || { echo "missing: $${missing[*]}; installing them needs root: sudo make $@" >&2; exit 1; }; \
	echo "installing: $${missing[*]}"; \
	export DEBIAN_FRONTEND=noninteractive; \
	if [ ! -e $(POLICY_RC) ]; then printf '#!/bin/sh\nexit 101\n' >$(POLICY_RC); chmod +x $(POLICY_RC); trap 'rm -f $(POLICY_RC)' EXIT; fi; \
	apt-get update -qq; \
	apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$${missing[@]}" >/dev/null

need-go:
	@[ -n "$(GO)" ] || { echo "no go in PATH or /usr/local/go/bin: install Go $(GO_WANTED) or newer, https://go.dev/doc/install, or name one that is elsewhere: make GO=/opt/go/bin/go" >&2; exit 1; }
	@have="$$($(GO) env GOVERSION)"; printf 'go%s\n%s\n' '$(GO_WANTED)' "$${have%% *}" | sort -CV || \
	  { echo "$(GO) is $$have: install Go $(GO_WANTED) or newer, https://go.dev/doc/install, or name another one: make GO=/usr/local/go/bin/go" >&2; exit 1; }

need-root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root, for it makes network namespaces: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

need-cc:
	@command -v "$${CC:-gcc}" >/dev/null || { echo "the race detector needs a C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }
