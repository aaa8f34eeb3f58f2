# Everything runs in .venv, which any target makes when it is missing and renews when a pin or a dependency changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.circuit-scout-installed
PACKAGES := discovery mcp_server
CODE := $(PACKAGES) $(wildcard tests training benchmarks)

.DEFAULT_GOAL := help
.PHONY: help install demo smollm2 test test-slow test-all bundles conformance check format format-check lint types contracts clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "make %-13s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Circuit Scout needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP) ## make .venv and install what constraints.txt pins

demo: $(STAMP) ## find a circuit in the bundled model, without a network
	$(BIN)/circuit-scout discover

smollm2: $(STAMP) ## fetch SmolLM2-135M (93 MB, kept in the user's data directory) and find its circuit for ioi
	model="$$($(BIN)/python -m benchmarks.smollm2)" && $(BIN)/circuit-scout discover ioi --model "$$model" $(WORDS)

test: $(STAMP) ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(STAMP) ## the slow tests
	SHAPE_CHECKS=0 $(BIN)/python -m pytest -m slow

test-all: $(STAMP) ## every test
	$(BIN)/python -m pytest

bundles: $(STAMP) ## write the manifests of the plugins (after a change of pyproject.toml)
	$(BIN)/python -m mcp_server.setup.bundles .

conformance: $(STAMP) ## the official MCP suite, the inspector and Claude Code on our server; needs npm and its registry
	$(BIN)/python -m tests.conformance.run $(WORDS)

check: format-check lint types contracts test ## all that a commit must pass

format: $(STAMP) ## write the code as ruff would
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

format-check: $(STAMP) ## is it written as ruff would?
	$(BIN)/ruff format --check $(CODE)

lint: $(STAMP) ## ruff
	$(BIN)/ruff check $(CODE)

types: $(STAMP) ## mypy: strict on the packages
	$(BIN)/mypy $(CODE)

# No cache: import-linter's does not notice a folder that becomes a package.
contracts: $(STAMP) ## import-linter: who may import whom
	$(BIN)/lint-imports --no-cache

clean: ## remove .venv, caches and builds
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
