# Everything this project can do, by name. Needs Python 3.11+ and make; writes nothing outside the checkout but pip's cache.
#
#   PYTHON=python3.12 make setup     choose the interpreter
#   ARGS="-k relay -x" make test     hand pytest more options
#   ARGS="-n 0 --pdb" make test      in one process, for a debugger or -s; plain `pytest` does so too
#   BROKER=redis make demo           see .env.example for the other variables

PYTHON ?= python3
ARGS ?=
# Four processes share the tests, which mostly wait (tests/rig/parallel.py); of those that crash, two are replaced.
PROCESSES ?= 4
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo up test faults soak check fmt reference clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the virtual environment in .venv, with everything the other verbs need

demo: $(STAMP) ## one real job of every type through a whole stack, then a summary (BROKER=redis|rabbitmq|postgres)
	@$(BIN)/switchyard demo

up: $(STAMP) ## the same stack, until Ctrl-C (BROKER= as above); prints the lines for a second shell
	@$(BIN)/switchyard up

test: $(STAMP) ## every test, against real Postgres, Redis and RabbitMQ
	@$(BIN)/python -m pytest -n $(PROCESSES) --max-worker-restart 2 $(ARGS)

faults: $(STAMP) ## an hour of kills, outages and cut wires, judged from outside (MINUTES= ONLY=F5 BROKER= SEED= FULL=1)
	@$(BIN)/python -m tests.faults

soak: $(STAMP) ## half an hour of ordinary traffic, in which nothing may grow, drift or leak (MINUTES= BROKER= RATE= SEED= LEAK=)
	@$(BIN)/python -m tests.soak

check: $(STAMP) ## formatting, lint, types and import layers
	@$(BIN)/ruff format --check --quiet . || { echo "make check: run 'make fmt'"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

fmt: $(STAMP) ## format the code, and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

reference: $(STAMP) ## write .env.example, docs/settings.md and docs/reference/cli.md anew from the code
	@$(BIN)/python -m tests.settings_reference
	@$(BIN)/python -m tests.cli_reference

clean: ## remove .venv, caches and var/ (with the demo's data)
	rm -rf $(VENV) var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "make: Python 3.11 or newer is needed, $(PYTHON) is older or missing: set PYTHON=, as in 'make setup PYTHON=python3.12'"; exit 1; }
	@echo "Installing into $(VENV) (a minute or two, and again only when the dependencies change)"
	@$(PYTHON) -m venv --clear $(VENV) \
	  || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt --editable '.[all,dev]'
	@touch $@
