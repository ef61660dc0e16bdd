# `make quickstart` runs the whole method; `make test` runs the tests. Both make .venv first, from pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint format clean

help:
	@echo "make quickstart   install, then run experiment=quickstart (a quarter of an hour on two CPU cores)"
	@echo "make test         install, then run the unit tests"
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
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
