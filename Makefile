# Everything a person does with this project. `make` alone lists the targets.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

DEMO_RAW    := data/demo-raw
DEMO_SHARDS := data/demo
DEMO_RUN    := runs/demo

SOURCES := shards prep train tests examples

# Names of folders are targets too: without .PHONY make would call them up to date.
.PHONY: help install demo shards test lint check bench bench-loaders torture corpus clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the project with tested versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or run make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), expected 3.11 or newer: run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot create $(VENV): install its venv module (Debian, Ubuntu: python3-venv)" >&2; exit 2; }
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP) ## make street scenes, shard them, train on them, print the scores
	$(BIN)/python -m prep.scenes $(DEMO_RAW)
	$(BIN)/seg-prep demo --root $(DEMO_RAW) --out $(DEMO_SHARDS) --scales 1,1/2,1/4 --workers 2
	@if tail -n 1 $(DEMO_RUN)/log.jsonl 2>/dev/null | grep -q '"finished": true'; \
	then echo "$(DEMO_RUN) is trained; nothing to do"; \
	else $(BIN)/seg-train --shards $(DEMO_SHARDS) --recipe demo --out $(DEMO_RUN) $$(test -e $(DEMO_RUN)/run.json && echo --resume); fi
	$(BIN)/seg-eval --run $(DEMO_RUN) --shards $(DEMO_SHARDS) --split val --report $(DEMO_RUN)/report

ifneq ($(filter shards,$(MAKECMDGOALS)),)
ifeq ($(and $(DATASET),$(ROOT)),)
$(error DATASET or ROOT is missing: make shards DATASET=cityscapes ROOT=/data/cityscapes [OUT=data/cityscapes] [ARGS="..."])
endif
endif
OUT ?= data/$(DATASET)

shards: $(STAMP) ## turn a dataset into shards: DATASET=cityscapes ROOT=/data/cityscapes [OUT=...] [ARGS="..."]
	$(BIN)/seg-prep "$(DATASET)" --root "$(ROOT)" --out "$(OUT)" $(ARGS)

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(STAMP) ## formatting, types and the arrows between the packages
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## everything that CI runs

BENCHES := soften storage pipeline step data_wait shuffle loader_memory update

bench: $(STAMP) ## measure speed, size and memory, and all of bench-loaders; prints ratios and targets: 50 minutes
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m tests.bench.$$name || exit 1; done
	$(BIN)/python -m tests.bench.loaders $(ARGS)

bench-loaders: $(STAMP) ## ours against six other loaders, each in its own environment: 25 minutes, 15 GB under .bench/
	$(BIN)/python -m tests.bench.loaders $(ARGS)

torture: $(STAMP) ## kill a thousand builds at random moments; each must end in the bytes of an undisturbed one
	$(BIN)/python -m tests.torture --trials 1000 $(ARGS)

corpus: $(STAMP) ## damage shard sets in thousands of ways; each damage must be found: 8 minutes
	$(BIN)/python -m tests.corpus $(ARGS)

clean: ## remove caches and build leftovers; data/, runs/, .bench and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
