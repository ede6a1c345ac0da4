# Everything a contributor runs. Needs Python 3.11 or newer with pip and venv, and make 3.81 or newer; nothing else:
# no root, no Docker, no Java. `make` alone lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The newest Python that really runs is taken; `make setup PYTHON=/path/to/python` overrides the search.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)

FAST_TESTS := tests/unit tests/contract tests/schemas tests/architecture
# bench/ is typed like the rest, but mypy refuses a folder that holds no Python at all.
TYPED := services schemas tests $(if $(wildcard bench/*.py),bench)

# What goes into the image is cut out of requirements.lock, so that no version is chosen twice.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --custom-compile-command "make lock"

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(STAMP) ## Create .venv with every dependency pinned by hash (skipped while nothing changed)

# A version manager may put a python3.X on the PATH that refuses to run, and Debian splits venv off its python3:
# so each candidate is tried by running it, and only what works is used.
$(STAMP): requirements.lock pyproject.toml
	@fit='import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))'; \
	python=; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" -c "$$fit" >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No usable Python 3.11 or newer among: $(PYTHONS)." >&2; \
	  echo "Each has to run, be at least 3.11, and have venv (on Debian: the package python3-venv)." >&2; \
	  echo "Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if [ -n "$(PYTHON)" ] || ! $(BIN)/python -c "$$fit" >/dev/null 2>&1; then \
	  echo "Creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "Installing requirements.lock, every file checked against its hash"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: lock
lock: $(STAMP) ## Pin the dependencies of pyproject.toml again, by hash
	$(COMPILE) --all-extras pyproject.toml -o requirements.lock
	$(COMPILE) --extra processor -c requirements.lock pyproject.toml -o deploy/requirements.lock
	$(COMPILE) -c requirements.lock deploy/build-requirements.in -o deploy/build-requirements.lock

.PHONY: lint
lint: $(STAMP) ## Style, types, import contracts, schemas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/consentry schemas lint

.PHONY: check
check: lint ## Before every commit: lint and the fast tests, in under a minute
	$(BIN)/pytest -m "not stack and not model" $(FAST_TESTS)

.PHONY: test
test: lint ## The gate: lint and every test, the real local stack included
	$(BIN)/pytest

.PHONY: exhaustive
exhaustive: $(STAMP) ## Every sequence of five events and controls instead of four, in about ten minutes
	CONSENTRY_EXHAUSTIVE_LENGTH=5 $(BIN)/pytest tests/unit/domain/test_exhaustive.py

.PHONY: demo
demo: $(STAMP) ## Start a real local stack and watch a pause reach three trainers
	$(BIN)/consentry demo

.PHONY: bench
bench: $(STAMP) ## Measure latency and throughput on this machine
	$(BIN)/python -m bench

.PHONY: clean
clean: ## Remove .venv, caches and what tests and the local stack left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist .consentry
	find services schemas tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
