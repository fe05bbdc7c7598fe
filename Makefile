# Everything from a fresh clone: `make demo`, `make test`. Needs Python 3.11 or later and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# `make install LOCKED=node` is for a machine that runs a link or a node: without what tests need.
LOCKED ?= node dev
LOCKS := $(LOCKED:%=-r requirements/%.txt)
BY_HASH := $(BIN)/pip install --quiet --no-build-isolation --require-hashes

.PHONY: install lock sbom demo test test-slow test-gpu lint bench docs

install: $(INSTALLED)

# Everything by its hash. A CPU-only torch has other hashes than PyPI's: where PIP_EXTRA_INDEX_URL names an index, or a torch with
# a label (2.14.1+cpu) is in .venv already, torch and torchaudio alone come by version.
$(INSTALLED): pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ser_fl needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BY_HASH) -r requirements/build.txt
	if [ -n "$$PIP_EXTRA_INDEX_URL" ] || $(BIN)/pip freeze | grep -q '^torch==.*+'; then \
	  $(BIN)/pip install --quiet --no-deps --constraint constraints.txt torch torchaudio && $(BY_HASH) $(LOCKS); \
	else $(BY_HASH) -r requirements/torch.txt $(LOCKS); fi
	$(BY_HASH) --no-deps -r requirements/ge2e.txt  # weights of frontend=ge2e; the package itself never runs
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# The locks by constraints.txt; `make lock UPGRADE=--upgrade` takes newer versions first.
lock: $(INSTALLED)
	$(BIN)/python scripts/lock.py $(UPGRADE)

sbom: $(INSTALLED)
	$(BIN)/python scripts/sbom.py

demo: $(INSTALLED)
	$(BIN)/ser-fl demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not gpu'

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m 'slow and not gpu'

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy scripts
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BY_HASH) -r requirements/bench.txt
	$(BIN)/python scripts/bench.py rounds attacks features memory startup scaling --json results/bench/bench.json

docs: $(INSTALLED)
	$(BY_HASH) -r requirements/docs.txt
	$(BIN)/python scripts/docsite_tutorials.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
