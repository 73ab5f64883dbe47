# Needs python3 (3.11 or newer) and make; everything else is set up in .venv by the first target that needs it.
# TORCH_INDEX=<url> chooses the build of torch: https://download.pytorch.org/whl/cpu or .../whl/cu130.

PYTHON ?= python3
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test lint verify bench-check site clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## optimize a real language model; what it gained is shown, and in report.html (fetches 93 MB once)
	$(BIN)/pio optimize demo --profile balanced --report report.html

test: $(READY) ## the tests that need neither a GPU nor much time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not gpu and not slow and not network"

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

verify: lint ## lint, and every test that needs no GPU: long sweeps and downloads too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not gpu"

bench-check: $(READY) ## what optimizing gains on this CPU, against the recorded ratios (fetches 93 MB the first time)
	$(BIN)/python benchmarks/check.py

site: $(READY) ## the documentation as a site, in build/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean: ## remove .venv and build leftovers; the models in your cache stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "inference-pio needs Python 3.11 \
	or newer and $(PYTHON) is %d.%d: make PYTHON=python3.12 ... chooses another." % v[:2])'
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
	|| { echo "$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu, install python3-venv." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=24' || true  # an older one works too
	@$(BIN)/python tools/torch_build.py $(TORCH_INDEX)
	$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[dev]'
	@touch $@
