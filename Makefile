# Every target sets up what it needs in .venv; nothing is asked of the machine but Python with pip
# and venv. `make gpu` is the exception: it uses the machine's own Python and installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Quiet twice: errors only. Once would still repeat a warning for every package.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet install
INSTALL := $(PIP) --constraint constraints.txt

# What a caller may give: make demo QUERY="..."; make test ARGS="-k maxsim"; make bench ARGS=...
# Taken as it was typed: make would expand a `$` inside it. The shell sees it only as a variable.
export DEMO_QUERY := $(value QUERY)
ARGS ?=

.DEFAULT_GOAL := help
# Chosen so that two idle cores take half a minute: what every text passes through, from checkpoint to
# score, and the indexes; no host, no command line, no page, and nothing that starts a process.
QUICK := cache colbert device embeddings encoder filters habits hub_cache index machine maxsim \
  overrides pooling refusals registry settings source windows

.PHONY: help demo quick test check fix fuzz gpu notebooks bench docs dist oldest newest \
  coverage

help: ## Print this list
	@echo 'Usage: make TARGET'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Rank sample documents with real weights, offline; QUERY="..." asks your own
	@$(BIN)/python -m colbert_rag.cli demo $${DEMO_QUERY:+-- "$$DEMO_QUERY"}

quick: check ## Check, then run the fast tests of the core: a minute, while you work
	@$(BIN)/python -m pytest --quiet --numprocesses auto --dist loadfile \
	  -m 'not slow and not network and not ray' -k 'not process' $(ARGS) \
	  $(QUICK:%=tests/test_%.py)

test: check ## Check, then run all tests that need no model hub; ARGS="-k word" selects
	@$(BIN)/python -m pytest --quiet --numprocesses auto --dist loadfile \
	  --max-worker-restart 2 $(ARGS)

check: $(VENV)/.dev ## Check formatting, lint, types and import directions
	@$(BIN)/ruff format --check --quiet --output-format concise .
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

fix: $(VENV)/.dev ## Format, and mend what the linter can mend by itself
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

notebooks: $(VENV)/.dev ## Run every notebook and keep its new outputs
	@$(BIN)/python -m tests.helpers.notebooks notebooks/*.ipynb

docs: $(VENV)/.dev ## Build the documentation into build/docs; every warning is an error
	@$(BIN)/sphinx-build --quiet --nitpicky --fail-on-warning --keep-going \
	  -d build/doctrees docs build/docs
	@echo 'Open build/docs/index.html'

fuzz: $(VENV)/.dev ## Look for inputs that break it; ARGS="--minutes 60 --target index_file"
	@$(BIN)/python -m tests.fuzz $(ARGS)

bench: $(VENV)/.dev ## Measure on this machine's CPU
	@$(BIN)/python -m benchmarks $(ARGS)

# Warnings of other versions than the pinned ones are shown, and are no errors: said by a variable,
# since some tests start a pytest of their own.
define TEST_WITH
@$(PYTHON) -m venv build/$@
@build/$@/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
@build/$@/bin/python -m pip install --quiet $(1) \
  --editable '.[evaluate,langchain,llama-index,offline,qdrant,remote,server]' --group test
@PYTEST_ADDOPTS='-o filterwarnings=default' build/$@/bin/python -m pytest --quiet \
  --numprocesses auto --dist loadfile --max-worker-restart 2 $(ARGS)
endef

coverage: $(VENV)/.dev ## Run all tests and show which lines and branches they miss
	@$(BIN)/python -m pytest --quiet --numprocesses auto --dist loadfile \
	  --max-worker-restart 2 --cov --cov-report term $(ARGS)

oldest: ## Run all tests with the oldest dependencies that pyproject.toml allows
	$(call TEST_WITH,--constraint constraints-oldest.txt)

newest: ## Run all tests with the newest dependencies that pyproject.toml allows
	$(call TEST_WITH,--upgrade --upgrade-strategy eager)

# The wheel is built from the sdist, so both are tried. `python -I` in another folder: else Python
# would import the package from here, and not the installed one.
dist: export PIP_DISABLE_PIP_VERSION_CHECK := 1
dist: ## Build wheel and sdist, and try them in empty environments
	@rm -rf dist build/dist && mkdir -p build/dist
	@$(PYTHON) -m venv build/dist/builder && build/dist/builder/bin/python -m pip install --quiet build
	@build/dist/builder/bin/python -m build --outdir dist . > build/dist/build.log \
	  || { cat build/dist/build.log; exit 1; }
	@$(PYTHON) -m venv build/dist/user
	@build/dist/user/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	@cd build/dist && user/bin/python -I $(CURDIR)/tests/helpers/smoke.py bare
	@build/dist/user/bin/python -m pip install --quiet --constraint constraints.txt \
	  "$$(echo dist/*.whl)[langchain,llama-index,offline]" pytest pytest-asyncio pyyaml
	@cd build/dist && user/bin/python -I $(CURDIR)/tests/helpers/smoke.py extras
	@cd build/dist && tar -xzf ../../dist/*.tar.gz && cd colbert_rag_components-* && \
	  ../user/bin/python -m pytest --quiet -p no:cacheprovider tests/test_habits.py

# A GPU machine comes with its own torch, and may lack frameworks and pytest plugins. So only files
# with GPU tests are read, and our pytest settings that assume the pinned versions are put aside.
gpu: export PYTHONPATH := $(CURDIR)$(addprefix :,$(PYTHONPATH))
gpu: ## Test and measure on a GPU with the machine's own python3; installs nothing
	@if $(PYTHON) -c 'import pytest' 2>/dev/null; then \
	  $(PYTHON) -m pytest -m gpu -p no:cacheprovider -o addopts= -o filterwarnings= \
	    $$(grep -rl --include='test_*.py' 'mark\.gpu' tests); \
	else \
	  echo 'pytest is not installed for $(PYTHON): GPU tests left out, benchmark only.'; \
	fi
	@$(PYTHON) -m benchmarks gpu $(ARGS)

$(VENV)/.pip:
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade 'pip>=25.1' # the first with --group
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml constraints.txt
	@echo 'Setting up $(VENV) to run the package (some minutes the first time) ...'
	@$(INSTALL) --editable '.[langchain,llama-index,offline,server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml constraints.txt
	@echo 'Setting up $(VENV) for development (some minutes the first time) ...'
	@$(INSTALL) --editable '.[evaluate,langchain,llama-index,offline,qdrant,ray,remote,server]' --group dev
	@touch $@
