# Everything runs from a virtual environment inside the checkout; a fresh machine needs Python 3.11-3.13 and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# PyLate excludes sentence-transformers 6: the second way to run ColBERT models has an environment of its own.
VENV_ST6 := .venv-st6
BIN_ST6 := $(VENV_ST6)/bin
STAMP_ST6 := $(VENV_ST6)/.installed
# What of the tests meets sentence-transformers; each of the two runs keeps to one core.
MEETS_ST := tests/cli tests/demo tests/jobs tests/mining tests/multivector tests/rerankers tests/search tests/training \
	tests/reindex/test_executors.py tests/reindex/test_plan.py tests/reindex/test_tokens.py \
	tests/columns/test_upkeep.py tests/evaluation/test_diagnosis.py $(wildcard tests/test_*.py)
# PyLate takes one of several releases of torch; tests and figures are of this one.
TORCH := torch==2.11.0

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,demo,pylate]' '$(TORCH)'
	@touch $@

$(STAMP_ST6): pyproject.toml
	$(PYTHON) -m venv $(VENV_ST6)
	$(BIN_ST6)/python -m pip install --quiet --upgrade pip
	$(BIN_ST6)/python -m pip install --quiet -e '.[dev,demo]' 'sentence-transformers>=6,<7' 'torch==2.13.0'
	@touch $@

demo: $(STAMP)  ## build a searchable table from Python's own documentation and compare five ways to search it
	$(BIN)/lance-rerank demo

test: lint $(STAMP_ST6)  ## ruff, mypy, then every test but the benchmarks; beside it, with sentence-transformers 6, those that meet it
	@$(BIN_ST6)/python -m pytest -q -p no:cacheprovider $(MEETS_ST) > $(VENV_ST6)/tests.log 2>&1 & second=$$!; \
	trap "kill $$second" INT TERM; \
	$(BIN)/python -m pytest -q; first=$$?; \
	echo "with sentence-transformers 6:"; wait $$second; second=$$?; cat $(VENV_ST6)/tests.log; \
	test $$first -eq 0 && test $$second -eq 0

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the benchmarks: minutes long, each prints the figures it measured
	$(BIN)/python -m pytest -q -s -m benchmark tests/benchmarks

clean:  ## remove the virtual environment and every cache
	rm -rf $(VENV) $(VENV_ST6) .pytest_cache .mypy_cache .ruff_cache
