# Everything runs from a virtual environment inside the checkout; a fresh machine needs Python 3.11-3.13 and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
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

demo: $(STAMP)  ## build a searchable table from Python's own documentation and compare four ways to search it
	$(BIN)/lance-rerank demo

test: lint  ## ruff, mypy, then every test but the benchmarks
	$(BIN)/python -m pytest -q

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
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
