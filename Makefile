# `make` lists the targets. Nothing outside this folder is needed but a Python and its package index.
# BROADSHEET_DATA, RAY_ADDRESS and pip's own settings are taken from the environment as they are.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run serve test test-slow cluster-test lint bench clean

help: ## list the targets
	@echo "make TARGET [ARGS='...'] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## environment in .venv at the versions of constraints.txt (at once if nothing changed)

# A CPU build of torch, or one of another CUDA: put it into .venv before `make install`, see the top of constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "make install: Python 3.10 to 3.13 is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
	    "Name another one: make install PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "making .venv with $$($(PYTHON) -V)"; $(PYTHON) -m venv .venv; }
	@echo "installing broadsheet and what it needs into .venv (the first time a few minutes, mostly torch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "installed: $(BIN)/broadsheet"

run: install ## the whole job, raw text to report: make run ARGS="--full"
	$(BIN)/broadsheet run $(ARGS)

serve: install ## serve the run 'default'; does the run first if there is none
	@test -e runs/default/checkpoint || $(BIN)/broadsheet run
	$(BIN)/broadsheet serve $(ARGS)

test: install ## the test suite
	$(BIN)/pytest -q $(ARGS)

test-slow: install ## the tests that kill processes, lose nodes and start clusters
	$(BIN)/pytest -q -m slow $(ARGS)

cluster-test: install ## three hosts on this machine and the real `ray up`, as root; needs ip, unshare, sshd, rsync
	$(BIN)/python tests/real_hosts.py $(ARGS)

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install ## the end-to-end benchmark; the others are benchmarks/*.py
	$(BIN)/python benchmarks/end_to_end.py $(ARGS)

clean: ## remove runs and caches; .venv stays
	rm -rf runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
