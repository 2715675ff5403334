# make demo   installs into .venv and runs the main job on the embedded data set
# make test   the same, then the default test suite
# make check  what CI runs before the tests: format, lint, types
#
# TORCH names another build of torch (a requirement or a wheel's path); pip's own configuration and environment
# (PIP_EXTRA_INDEX_URL and the like) are passed through.

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test check slow install install-dev clean

demo: install
	rm -rf $(DEMO)
	$(BIN)/cascade-kd run demo --out $(DEMO)

test: install-dev demo
	OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

slow: install-dev
	$(BIN)/python -m pytest -q -m "slow or data or gpu" -rs

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu,report]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu,report,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs dist build
