# `make demo` and `make test` set up all they need; only Python 3.10 or newer and make must be there.
PYTHON ?= python3
VENV := .venv
BARE := .venv-bare
BIN := $(VENV)/bin
INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bare clean

demo: $(VENV)/.compare  ## compare all methods on scikit-learn's handwritten digits
	$(BIN)/flatter compare digits-mlp --out runs/demo

test: check bare  ## everything: linters, types, import directions, all tests, the library alone

check: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2

bare: $(BARE)/.installed  ## the library without any extra
	$(BARE)/bin/python -W error tests/bare_environment.py

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.compare: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python $(INSTALL) -e '.[compare]'
	touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml constraints.txt tests/oracles.txt
	$(BIN)/python $(INSTALL) -e '.[test]'
	$(BIN)/python $(INSTALL) --no-deps -r tests/oracles.txt
	touch $@ $(VENV)/.compare

$(BARE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BARE)
	$(BARE)/bin/python $(INSTALL) -e .
	touch $@

clean:
	rm -rf $(VENV) $(BARE) runs build dist
