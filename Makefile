# make demo   sets up .venv and runs the quickstart recipe
# make test   sets up .venv, lints, type-checks and tests
# make test-full   everything, with the suites that need more than pip (once, as root: tests/setup_apt.sh)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-full lint setup docs sprout clean

PYTHON ?= python3
BIN := .venv/bin
## schemathesis gives its tests of all operations one id, and workers would run one of them.
ONE_ID := tests/serve/test_openapi.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

help:
	@sed -n 's/^# //p' Makefile

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt tests/setup_venv.sh
	@PYTHON=$(PYTHON) tests/setup_venv.sh
	@touch $@

demo: setup
	@$(BIN)/tunerun +recipe=quickstart

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

## A file's tests stay in one process, for they share what they made.
test: lint
	@$(BIN)/pytest -n 2 --dist loadfile --ignore=$(ONE_ID)
	@$(BIN)/pytest $(ONE_ID)

test-full: lint
	@$(BIN)/pytest -m '' -rs

docs: setup
	@$(BIN)/python -m tunerun.config.reference
	@$(BIN)/python -m tunerun.plan.capacity

## Trains the shipped base model again from generated text, about 20 minutes on 2 cores.
sprout: setup
	@$(BIN)/python -m tunerun.sprout outputs/sprout
	@$(BIN)/tunerun +recipe=sprout-pretrain run_dir=outputs/sprout/pretrain
	@$(BIN)/tunerun +recipe=sprout-instruct run_dir=outputs/sprout/instruct

clean:
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
