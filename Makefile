# mvm: build, demo, test. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := build

export CGO_ENABLED := 0
GO      ?= go
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.1.0-dev)
LDFLAGS := -s -w -X github.com/mvmctl/mvm/api.Version=$(VERSION)
AGENT   := internal/guest/agentbin/bin/mvm-agent-
AGENTS  := amd64 arm64
AGENT_MOST := 8388608
PACKAGES := packaging/apt-packages

.PHONY: build agent install demo test unit race bench docs lint packages test-packages clean dist help

build: agent ## build bin/mvm with the guest agent inside
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/mvm ./cmd/mvm
	@$(GO) build -trimpath -ldflags '-s -w' -o bin/mvm-helper ./cmd/mvm-helper

agent:
	@for arch in $(AGENTS); do \
	  GOARCH=$$arch $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(AGENT)$$arch.new ./cmd/mvm-agent; \
	  [ $$(stat -c %s $(AGENT)$$arch.new) -le $(AGENT_MOST) ] || { echo "the agent for $$arch is larger than 8 MiB" >&2; exit 1; }; \
	  cmp -s $(AGENT)$$arch.new $(AGENT)$$arch && rm -f $(AGENT)$$arch.new || mv -f $(AGENT)$$arch.new $(AGENT)$$arch; \
	done

install: build ## install mvm to /usr/local/bin
	$(SUDO) install -m 0755 bin/mvm /usr/local/bin/mvm
	$(SUDO) install -D -m 0755 bin/mvm-helper /usr/local/libexec/mvm/mvm-helper

demo: ## from a bare machine to a running microVM that answers
	@test/demo/demo.sh

packages: ## install what mvm needs (Debian, Ubuntu)
	@packaging/install-packages run

test-packages:
	@packaging/install-packages run test

test: test-packages build ## every test lane that this machine can run
	@test/lanes/run.sh ./...

unit: ## the fast tests only: no root, no VMs
	@$(GO) test -short ./...

race: ## the fast tests under the race detector (needs a C compiler)
	@CGO_ENABLED=1 $(GO) test -race -short ./...

bench: build test-packages ## benchmarks, as ratios in one run
	@MVM_TEST_MVM=$(CURDIR)/bin/mvm $(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./test/bench

docs: ## the pages that are made of the commands and the API
	@UPDATE_API_DOC=1 UPDATE_CLI_DOCS=1 $(GO) test -count=1 -run 'TestAPIDoc|TestDocs|TestReferenceRows' ./internal/cli

lint: ## gofmt, vet, and golangci-lint where it is installed
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	@$(GO) vet ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "golangci-lint is not installed: only gofmt and vet ran"; fi

dist: ## packages of a release: tarball, deb, rpm
	@packaging/dist

clean: ## remove what was built
	@rm -rf bin dist $(AGENT)*

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
