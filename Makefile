# One duty a target; `make help` lists them. Everything runs from .venv, which the stamp file sets up on first use and again
# when pyproject.toml changes. Packages come from whatever index pip is set up for on this machine.

.DEFAULT_GOAL := help
.PHONY: help demo test chaos check fmt bench docs build clean

# The first Python >= 3.11 among these; name another with `make PYTHON=/path/to/python test`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
JOBS ?= 2
STAMP := .venv/.installed
CODE := src tests tools benchmarks examples

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

ifeq ($(origin URL),command line)
demo: export ONWARD_DATABASE_URL = $(URL)
endif
demo: $(STAMP) ## four systems, each killed half-way, on SQLite (or URL=postgresql://…)
	$(BIN)/onward demo $(if $(KEEP),--keep)

test: $(STAMP) ## the whole test suite, under 10 minutes (ARGS="-k word" to choose, JOBS=4 for more processes)
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

chaos: $(STAMP) ## the fault suites at full length: every kill point, every N, two minutes of chaos
	ONWARD_LONG=1 $(BIN)/pytest -rfEP tests/faults tests/postgres --timeout=900 $(ARGS)

check: $(STAMP) ## format, lint, types and the rules of the layout
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing/right_*.py
	$(BIN)/python tools/check_layout.py
	$(BIN)/python tools/check_docs.py
	$(BIN)/python -m tools.reference --check

fmt: $(STAMP) ## format the code and mend what can be mended
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/python -m tools.reference

bench: $(STAMP) ## speed and memory beside bare SQL and the peers, into docs/benchmarks.md (ARGS="--only starts")
	$(BIN)/python -m benchmarks --write $(ARGS)

docs: $(STAMP) ## check the README and docs/, and build the site in site/ (warnings fail)
	$(BIN)/python tools/check_docs.py
	$(BIN)/python -m tools.reference --check
	$(BIN)/python -m tools.build_docs

build: $(STAMP) ## the wheel and the source distribution, in dist/
	rm -rf dist
	$(BIN)/python -m build

clean: ## remove everything that the targets made
	rm -rf .venv dist build site .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "onward needs Python >= 3.11 with venv; name one: make PYTHON=/path/to/python test" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
