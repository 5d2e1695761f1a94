# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON chooses the interpreter (3.11 to 3.14), VENV where its packages go.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pytest-xdist: one process a core.
JOBS ?= auto

.PHONY: help demo test lint types unit docs wheel-test setup bench clean

help:
	@echo "make demo        set up, run the whole pipeline on slides it makes, write demo/report.html"
	@echo "make test        set up, lint, type-check and run every test"
	@echo "make docs        build the documents as pages in build/docs; a warning or a broken link is an error"
	@echo "make wheel-test  build the wheel, install it into an empty environment and run it"
	@echo "make bench       speed and memory of the steps (minutes)"
	@echo "make clean       remove what the targets above made"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -e '.[dev]'
	@# The parity reference of the stain tests (GPL, never a runtime need). Without its
	@# dependencies: it asks for the OpenCV that needs a display.
	$(BIN)/python -m pip install --quiet --no-deps staintools==2.1.2 spams-bin==2.6.14 \
	  || echo "no wheel of spams for this machine: the parity tests will be skipped"
	@touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.run
	rm -rf demo
	$(BIN)/wsiad demo --out demo
	@echo "Open demo/report.html in a browser."

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS)

test: lint types unit

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -E -q -c docs/site -d build/docs-cache docs build/docs
	@echo "Open build/docs/index.html in a browser."

wheel-test: $(VENV)/.dev
	rm -rf build/wheel-test && mkdir -p build/wheel-test
	$(BIN)/python -m build --wheel --outdir build/wheel-test .
	$(PYTHON) -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python -m pip install --quiet -c requirements/constraints.txt build/wheel-test/*.whl
	cd build/wheel-test && venv/bin/wsiad doctor && venv/bin/wsiad demo --out demo --fast
	rm -rf build/wheel-test/venv

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/stain.py speed
	$(BIN)/python benchmarks/tile.py

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .nox
