# The commands of a developer; .ci/run calls the same targets. `make` alone lists them.

PYTHON ?= python3
# The GPU targets run on machines that need no installation: any Python with torch and triton.
GPU_PYTHON ?= python3
PART ?= gemm
DEVICE ?= sm_90
MINUTES ?= 9
RESULTS ?= benchmarks/results

# Two tests at a time of one thread each, those of a file one after another; what measures time runs by itself.
ONE_THREAD := OMP_NUM_THREADS=1
BESIDE := -n 2 --dist loadfile -m "not alone"
ALONE = -m alone $(shell grep -rlF pytest.mark.alone tests)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long emulate check format bench gpu dry clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP) ## make .venv with overlapc and everything its tests need (PYTHON=python3.12 to choose)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "overlapc needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON)' cannot make a virtual environment: its venv module is missing or broken" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup ## compile a tensor-parallel Llama on this machine, with and without overlap
	$(BIN)/python -m examples.tensor_parallel_llama

test: setup ## every test that is not marked long (minutes)
	$(ONE_THREAD) $(BIN)/python -m pytest $(BESIDE)
	$(BIN)/python -m pytest $(ALONE)

test-long: setup ## every test, full matrices included
	$(ONE_THREAD) $(BIN)/python -m pytest --long $(BESIDE)
	$(BIN)/python -m pytest --long $(ALONE)

emulate: setup ## what tests interpret, as Triton compiles it for a DEVICE (sm_90), on one that is emulated
	$(ONE_THREAD) $(BIN)/python -m pytest --emulate $(DEVICE) $(BESIDE) tests/codegen

check: setup ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup ## let ruff lay out the code and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## GEMMs and collectives over a rate-limited link, against serial and the bound
	$(BIN)/python -m benchmarks.overlap_link

gpu: ## check, then time one PART on a GPU, in MINUTES (9), into RESULTS (no set-up)
	$(GPU_PYTHON) -m benchmarks.gpu $(PART) --minutes $(MINUTES) --out $(RESULTS)

dry: ## launch rows of one PART (gemm, linear, attention) on a GPU that is absent; GPU_PYTHON needs torch alone
	$(GPU_PYTHON) -m tests.device $(PART) $$(mktemp -d) 50

clean: ## remove the virtual environment and whatever tools left behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
