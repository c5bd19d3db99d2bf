# Market. `make help` lists the commands.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test test-cluster chaos check format generate lock clean bench bench-quick

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## make the environment in .venv (locked, hashed)

$(VENV)/.installed: requirements.lock pyproject.toml dev/pyproject.toml
	@PYTHON=$(PYTHON) scripts/install.sh
	@touch $@

run: install ## start the shop on this machine (ARGS="--empty ..." hands options on)
	@$(BIN)/market up $(ARGS)

test: install ## all tests, on real servers
	@$(BIN)/python -m pytest $(ARGS)

chaos: install ## the chaos test: three runs of 200 kills, about an hour (ARGS="--seed 2 ..."); report in docs/chaos
	@$(BIN)/market chaos --seed 1 --seed 2 --seed 3 --kills 200 --report docs/chaos/report.md $(ARGS)

test-cluster: install ## the tests on the Kubernetes cluster that kubectl points to (ARGS="...")
	@MARKET_CLUSTER=1 $(BIN)/python -m pytest tests/cluster -s -ra $(ARGS)

check: install ## all that must hold without running the shop: format, lint, types, imports, generated files
	@scripts/check.sh

$(VENV)/.bench: $(VENV)/.installed requirements/bench.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.lock
	@touch $@

bench: $(VENV)/.bench ## measure the speed beside peers and limits (about 65 minutes; ARGS="order mail" for some scenarios)
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-quick: $(VENV)/.bench ## the same in three short rounds (about fifteen minutes), into .market/bench
	@$(BIN)/python -m benchmarks.run --quick --out .market/bench $(ARGS)

format: install ## put the code into the one form
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

generate: install ## make the generated files anew: protobuf code, OpenAPI
	@scripts/generate.sh

lock: ## resolve the dependencies anew (needs uv)
	@scripts/lock.sh

clean: ## remove the environment and the local data
	rm -rf $(VENV) .market
