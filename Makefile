# The two commands: `make quickstart` (a model trained and one talked to) and `make test`.
# On Linux plain torch brings CUDA's libraries along. Without an NVIDIA GPU a much smaller build does: set
# PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds (pytorch.org, "Get started") before the first make.

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
PROJECT := pyproject.toml constraints.txt

# Tests start many processes: each would compile torch's thousand modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-all lint bench .venv

quickstart: .venv/core-installed
	$(BIN)/python -m shoestring quickstart

test: .venv/dev-installed
	$(BIN)/python -m pytest -q -n 2 tests

test-all: .venv/dev-installed
	$(BIN)/python -m pytest -q -n 2 -m "long or not long" tests

lint: .venv/dev-installed
	$(BIN)/python -m ruff check src tests $(wildcard benchmarks)
	$(BIN)/python -m mypy

bench: .venv/dev-installed
	$(BIN)/python -m benchmarks.pretrain

.venv: .venv/dev-installed

.venv/python-made:
	$(PYTHON) -c 'import sys; sys.exit("Shoestring needs Python 3.10 or newer, and this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	touch $@

.venv/core-installed: $(PROJECT) | .venv/python-made
	$(INSTALL) -e .
	touch $@

.venv/dev-installed: $(PROJECT) | .venv/python-made
	$(INSTALL) -e ".[dev]"
	touch .venv/core-installed $@
