# Everything a person needs: `make run` starts Isoquant, `make test` proves it. See README.md.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PORT ?= 8501
export PORT

.PHONY: help run test check kernels format install install-dev chromium train gpu-check clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: install  ## Start the web app and the worker, and print the URL
	@$(BIN)/python scripts/start.py

test: install-dev chromium  ## The whole suite, browser tests included
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

check: install-dev  ## Format, lint, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m "not slow and not browser" $(ARGS)

kernels: install-dev  ## Every combination of every kernel, interpreted and compiled
	$(BIN)/python -m pytest -n 2 -m "exhaustive or slow" tests/test_compiled_*.py tests/test_kernels_*.py tests/test_simulated_gpu.py $(ARGS)

format: install-dev  ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt scripts/install.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/install.sh requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/install.sh requirements-dev.txt
	@touch $@

chromium:
	@bash scripts/chromium.sh

train: install  ## Train the lab models from nothing (about an hour on two cores)
	$(BIN)/python -m lab.train --all $(ARGS)

# Any Python whose torch sees the GPU and that has the packages of requirements-dev.txt; nothing is installed.
GPU_PYTHON ?= $(shell $(BIN)/python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" 2>/dev/null && echo $(BIN)/python || echo $(PYTHON))
gpu-check:  ## On a machine with an NVIDIA GPU: correctness, then benchmark tables
	$(GPU_PYTHON) -m bench.gpu_check $(ARGS)

clean:  ## Remove the virtual environment (never the measurements)
	rm -rf $(VENV)
