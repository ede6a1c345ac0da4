# Everything a contributor runs. Needs Python 3.11 or newer with pip and venv, and make 3.81 or newer; nothing else:
# no root, no Docker, no Java. `make` alone lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STAMP_ALL := $(VENV)/.installed-all

# The newest Python that really runs is taken; `make setup PYTHON=/path/to/python` overrides the search.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)

FAST_TESTS := tests/unit tests/contract tests/schemas tests/architecture
# bench/ is typed like the rest, but mypy refuses a folder that holds no Python at all.
TYPED := services schemas tests $(if $(wildcard bench/*.py),bench)

# Two workers, each with a real stack of its own: tests mostly wait for processes. A file stays with one worker.
WORKERS := 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# torch, pyspark and ray take gigabytes: `make setup-all` brings them, `make setup` does not.
EXTRAS := processor gateway bundler agent polars pandas duckdb hf delta iceberg local dev

# What goes into the image is cut out of requirements.lock, so that no version is chosen twice.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --custom-compile-command "make lock"

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

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

# The same versions as requirements.lock wherever both name a package; uv, as pip takes minutes for gigabytes.
.PHONY: setup-all
setup-all: $(STAMP_ALL) ## Also torch, pyspark, ray, MLflow and OpenLineage, for test-all (gigabytes)

$(STAMP_ALL): $(STAMP) tests/heavy/requirements.lock
	@echo "Installing tests/heavy/requirements.lock, every file checked against its hash"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r tests/heavy/requirements.lock
	@touch $@

.PHONY: lock
lock: $(STAMP) ## Pin the dependencies of pyproject.toml again, by hash
	$(COMPILE) --all-extras pyproject.toml -o tests/heavy/requirements.lock
	$(COMPILE) $(addprefix --extra ,$(EXTRAS)) -c tests/heavy/requirements.lock pyproject.toml -o requirements.lock
	$(COMPILE) --extra processor --extra gateway --extra bundler -c requirements.lock pyproject.toml -o deploy/requirements.lock
	$(COMPILE) -c requirements.lock deploy/build-requirements.in -o deploy/build-requirements.lock

.PHONY: lint
lint: $(STAMP) ## Style, types, import contracts, schemas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/consentry schemas lint
	$(BIN)/consentry schemas asyncapi --check schemas/asyncapi.yaml
	$(BIN)/consentry schemas openapi --check schemas/openapi.yaml

.PHONY: check
check: lint ## Before every commit: lint and the fast tests, in under a minute
	$(PYTEST) -m "not stack and not model and not long" $(FAST_TESTS)

.PHONY: test
test: lint ## The gate: lint, and every capability once, the real local stack included
	$(PYTEST) -m "not long"

.PHONY: test-all
test-all: $(STAMP_ALL) ## What `make test` leaves out: kills in series, full sizes; torch, Spark, Ray, MLflow, OpenLineage
	CONSENTRY_TEST_SIZE=full $(PYTEST) -m "long or sized"
	$(BIN)/pytest tests/heavy

.PHONY: exhaustive
exhaustive: $(STAMP) ## Every sequence of five events and controls instead of four, in about ten minutes
	CONSENTRY_EXHAUSTIVE_LENGTH=5 $(BIN)/pytest tests/unit/domain/test_exhaustive.py

# mutmut 3.5 leaves out every decorated class and method, which is most of the domain; takes the folder for the package;
# gives every mutant of a file the time of the quickest; and was written before pytest 9.2. So it is told otherwise first.
define MUTMUT
import sys
import libcst, pytest
from mutmut import __main__ as mutmut, file_mutation as made


class Undecorated(libcst.CSTTransformer):
    """Writes `@property` above `def name` as `name = property(name)` below it, and classes likewise."""

    def leave_FunctionDef(self, _, node):
        name, code = node.name.value, libcst.Module([]).code_for_node
        calls = [f"{name} = {code(one.decorator)}({name})" for one in reversed(node.decorators)]
        return libcst.FlattenSentinel([node.with_changes(decorators=()), *map(libcst.parse_statement, calls)])

    leave_ClassDef = leave_FunctionDef


def execute_anew(runner, *arguments, **more):
    """Import everything again for each run: Hypothesis refuses a test that it has seen in another run."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("consentry", "tests")]:
        del sys.modules[name]
    try:
        return execute(runner, *arguments, **more)
    except mutmut.BadTestExecutionCommandsException:
        return 1  # a mutant that cannot even be imported


mutate, table_of, name_of, execute = (
    made.create_mutations, made.create_trampoline_lookup, mutmut.get_mutant_name, mutmut.PytestRunner.execute_pytest
)
made.create_mutations = lambda code, lines=None: mutate(libcst.parse_module(code).visit(Undecorated()).code, lines)
made.create_trampoline_lookup = lambda **what: table_of(**what).replace(": ClassVar[MutantDict]", "")
mutmut.get_mutant_name = lambda path, name: name_of(path.relative_to("services"), name)
mutmut.timeout_checker = lambda mutants: lambda: None
mutmut.PytestRunner.execute_pytest = execute_anew
pytest.Item._nodeid = property(lambda item: item.nodeid)
mutmut.cli()
endef

.PHONY: mutants
mutants: export TOLD = $(MUTMUT)
mutants: $(STAMP) ## Break the rules in 1,400 small ways, in half an hour; fails if no test minds and no reason is given
	rm -rf mutants
	CONSENTRY_EXHAUSTIVE_LENGTH=3 $(BIN)/python -c "$$TOLD" run
	@echo "Survivors, to be seen with $(BIN)/mutmut show consentry.domain.NAME:"
	@$(BIN)/mutmut results | { \
	  status=0; \
	  while read -r name outcome; do \
	    name=$${name#consentry.domain.}; name=$${name%:}; \
	    if grep -qwF -e "$$name" docs/mutation.md; then why="see docs/mutation.md"; else why="NOT EXPLAINED"; status=1; fi; \
	    echo "  $$name: $$outcome, $$why"; \
	  done; \
	  exit $$status; \
	}

.PHONY: demo
demo: $(STAMP) ## Start a real local stack and watch a pause reach three trainers
	$(BIN)/consentry demo

.PHONY: bench
bench: $(STAMP) ## Measure latency and throughput on this machine
	$(BIN)/python -m bench

.PHONY: clean
clean: ## Remove .venv, caches and what tests and the local stack left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist mutants .consentry
	find services schemas tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
