# Market. `make help` lists the commands.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install run test test-cluster test-clients test-keycloak screenshots chaos check format generate lock clean bench bench-quick bench-before soak

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## create the environment in .venv (locked versions and hashes)
	@# Compile what has changed since: with PYTHONDONTWRITEBYTECODE, each start of a service would do that again.
	@$(BIN)/python -m compileall -q src dev

$(VENV)/.installed: requirements.lock tests/requirements.lock pyproject.toml dev/pyproject.toml
	@PYTHON=$(PYTHON) scripts/install.sh
	@touch $@

run: install ## run the shop on this machine (ARGS="--empty ..." passes options)
	@$(BIN)/market up $(ARGS)

test: install ## run all tests, on real servers
	@$(BIN)/python -m pytest $(ARGS)

screenshots: install ## take the pictures of docs/screenshots (needs Chromium; ARGS="basket" for some pages)
	@$(BIN)/python -m tests.storefront.screenshots docs/screenshots $(ARGS)

chaos: install ## run the chaos test: three runs of 200 kills, about an hour (ARGS="--seed 2 ..."); report in docs/chaos
	@$(BIN)/market chaos --seed 1 --seed 2 --seed 3 --kills 200 --report docs/chaos/report.md $(ARGS)

test-cluster: install ## run the tests on the Kubernetes cluster of kubectl's current context (ARGS="tests/cluster/test_x.py" for some)
	@MARKET_CLUSTER=1 $(BIN)/python -m pytest $(if $(findstring tests/cluster/,$(ARGS)),,tests/cluster) -s -ra $(ARGS)

test-keycloak: install ## check who may do what with tokens of a real Keycloak (needs Java and Maven)
	@MARKET_KEYCLOAK=1 $(BIN)/python -m pytest tests/authorization/test_matrix.py tests/authorization/test_outage.py tests/issuer/test_permissions.py tests/issuer/test_browser.py tests/issuer/test_storefront.py tests/issuer/test_graphql.py tests/issuer/test_commands.py -ra $(ARGS)

test-clients: install ## run clients in Go, Java, JavaScript and Python against the shop (needs Go, Java, Maven and Node.js)
	@MARKET_CLIENTS=1 $(BIN)/python -m pytest tests/clients -ra $(ARGS)

check: install ## run all static checks: format, lint, types, imports, generated files, manifests
	@scripts/check.sh

$(VENV)/.bench: $(VENV)/.installed requirements/bench.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.lock
	@touch $@

bench: $(VENV)/.bench ## run the benchmarks (about 65 minutes, then 30 of memory under load; ARGS="order mail" for some scenarios)
	@$(BIN)/python -m benchmarks.run $(if $(REF),--ref $(REF)) $(ARGS)

soak: install ## load the shop for 30 minutes beside hostile clients (ARGS="--minutes 3"); report in benchmarks/results/soak.md
	@$(BIN)/python -m benchmarks.soak $(ARGS)

bench-quick: $(VENV)/.bench ## run them in three short rounds, into .market/bench
	@$(BIN)/python -m benchmarks.run --quick --out .market/bench $(if $(REF),--ref $(REF)) $(ARGS)

bench-before: install ## compare the speed with an earlier commit (REF=v1; ARGS="--rounds 15 order" for some scenarios)
	@[ -n "$(REF)" ] || { echo 'usage: make bench-before REF=COMMIT' >&2; exit 2; }
	@$(BIN)/python -m benchmarks.before $(REF) $(ARGS)

format: install ## format the code and fix lint errors
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

generate: install ## regenerate protobuf code, OpenAPI and AsyncAPI documents
	@scripts/generate.sh

lock: ## resolve the dependencies again (needs uv)
	@scripts/lock.sh

clean: ## remove the environment and the local data
	rm -rf $(VENV) .market
