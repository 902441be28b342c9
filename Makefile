# Every target sets up all it needs; only Python 3.10 or newer and make must be there.
PYTHON ?= python3
VENV := .venv
BARE := .venv-bare
VISION := .venv-vision
SITE := .venv-site
BIN := $(VENV)/bin
# The Python that `make gpu` runs: one whose torch has CUDA (see docs/gpu.md).
GPU_PYTHON ?= $(BIN)/python
PIP = -m pip install --quiet --disable-pip-version-check
INSTALL = $(PIP) -c constraints.txt

# Random cases of each test in `make fuzz`, and in its slice that CI runs.
FUZZ_EXAMPLES ?= 10000
# What the second supported torch must pass: all that touches an optimizer's step. CI runs a part of it.
VISION_TESTS ?= tests/vision tests/contract tests/attach/test_attach.py tests/attach/test_exactness.py tests/optim/test_optim.py tests/optim/test_fused_scaler.py \
	tests/optim/test_fused_fork.py tests/noise/test_kernels.py tests/test_lr_scheduler.py tests/attach/test_mixed_precision.py \
	tests/noise/test_noise.py tests/test_perturbation.py tests/attach/test_supported.py

.PHONY: demo test check bare fuzz test-frameworks test-vision site gpu gpu-dry-run step-cost clean

demo: $(VENV)/.compare  ## compare all methods on scikit-learn's handwritten digits
	$(BIN)/flatwise compare digits-mlp --out runs/demo

test: check bare  ## linters, types, import directions, all tests of the core, the judge and flatness, the library alone

check: $(VENV)/.test
	$(BIN)/ruff check src papers tests benchmarks docs
	$(BIN)/ruff format --check src papers tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2

bare: $(BARE)/.installed  ## the library without any extra
	$(BARE)/bin/python -W error tests/bare_environment.py

fuzz: $(VENV)/.test  ## the random cases of tests/fuzz, many more of them: FUZZ_EXAMPLES each
	FLATWISE_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest -n 2 --durations=0 --durations-min=1 tests/fuzz

test-frameworks: $(VENV)/.frameworks  ## Lightning, Accelerate, Ray, torch_geometric
	$(BIN)/pytest -n 2 tests/frameworks

test-vision: $(VISION)/.installed  ## torchvision, and the contract with the second supported torch
	$(VISION)/bin/pytest -n 2 $(VISION_TESTS)

site: $(SITE)/.installed  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet

gpu:  ## parity, contract, mixed precision, graph capture and step cost on a CUDA device, into docs/gpu_results.md
	if test "$(GPU_PYTHON)" = "$(BIN)/python"; then $(MAKE) $(VENV)/.test; fi
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py --out docs/gpu_results.md

gpu-dry-run: $(VENV)/.test  ## the program behind `make gpu`, run through on the CPU
	$(BIN)/python benchmarks/gpu.py --device cpu --rounds 1 --out $(VENV)/gpu_dry_run.md

step-cost: $(VENV)/.test  ## the cost of a step as a ratio to torch's, against the bounds in benchmarks/step_bounds.csv
	$(BIN)/python benchmarks/step_gate.py

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.compare: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python $(INSTALL) -e '.[compare]'
	touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml papers/pyproject.toml constraints.txt tests/oracles.txt
	$(BIN)/python $(INSTALL) -e '.[test]' -e './papers[images]'
	$(BIN)/python $(INSTALL) --no-deps -r tests/oracles.txt
	touch $@ $(VENV)/.compare

$(VENV)/.frameworks: $(VENV)/.test
	$(BIN)/python $(INSTALL) -e '.[frameworks]'
	touch $@

$(BARE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BARE)
	$(BARE)/bin/python $(INSTALL) -e .
	touch $@

$(VISION)/.installed: pyproject.toml constraints-vision.txt
	$(PYTHON) -m venv $(VISION)
	$(VISION)/bin/python $(PIP) -c constraints-vision.txt -e '.[test]' -e './papers[images]' torchvision
	touch $@

$(SITE)/.installed: docs/requirements.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python $(PIP) -r docs/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(BARE) $(VISION) $(SITE) site runs build dist
