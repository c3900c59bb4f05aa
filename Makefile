# The two loops a contributor needs: `make test-fast` while working, `make test` before pushing. `make run` shows the thing alive.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup setup-dev run demo test test-fast lint protos bench fuzz lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/.run.stamp  ## make .venv with what running needs
setup-dev: .venv/.dev.stamp  ## make .venv with what developing needs

.venv/.%.stamp: .ci/locks/%.txt pyproject.toml .ci/setup
	@PYTHON="$(PYTHON)" .ci/setup $*
	@touch $@

run: setup  ## aggregator, this machine's agent and a simulated node that lives through a fault
	@$(BIN)/gcm-sentinel demo --live

demo: setup  ## play every scenario, compare with its expected verdict
	@$(BIN)/gcm-sentinel demo

lint: setup-dev  ## format, lint, types, layers, wire contract
	@.ci/lint

test-fast: setup-dev  ## everything but the slow tests (under two minutes)
	@$(BIN)/python -m pytest -m "not slow" -n 4 --dist loadgroup

test: setup-dev lint  ## everything, with coverage
	@.ci/test

protos: setup-dev  ## regenerate protos/v1 from the .proto files
	@.ci/protos

bench: setup-dev  ## print the figures of docs/benchmarks.md for this machine
	@$(BIN)/python -m tests.bench

fuzz: setup-dev  ## a million hostile inputs, over twelve properties
	@GCM_SENTINEL_FUZZ_EXAMPLES=84000 $(BIN)/python -m pytest tests/fuzz --timeout=0 -n 2

lock:  ## resolve dependencies anew (needs uv)
	@.ci/lock

clean:  ## remove what setup and runs made
	rm -rf .venv .run build *.egg-info
