# Everything from a fresh clone: `make demo`, `make test`. Needs Python 3.11 or later and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-slow test-gpu lint bench docs

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ser_fl needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps resemblyzer==0.1.4  # weights of frontend=ge2e; the package itself never runs
	touch $@

demo: $(INSTALLED)
	$(BIN)/ser-fl demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu'

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
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python scripts/bench.py rounds attacks features memory startup scaling --json results/bench/bench.json

docs: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/python scripts/docsite_tutorials.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
