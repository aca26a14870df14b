# `make repro` runs the pipeline, `make test` the tests; each sets up .venv first, from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: repro test lint pages install

repro: install
	dvc repro

test: install lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations 10

lint: install
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# Brings what README.md and docs/ show of other files up to date.
pages: install
	cog -r README.md docs/*.md

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dinv needs Python 3.11 or newer; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@
