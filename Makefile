# Everything a person types. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NAME ?=
JSON ?=
TIME ?= 60
DEMO ?= --task digits

export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
# Hundreds of processes start in a test run: what they import is compiled once.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo test check unit soak fuzz bench proto deb clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*?## ' $(MAKEFILE_LIST) | awk -F':.*?## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Make the virtual environment and install system packages that are missing

$(STAMP): pyproject.toml setup.py constraints.txt scripts/install-system-packages.sh $(wildcard edge_agent/skerry_agent/*/_*.[ch])
	scripts/install-system-packages.sh mosquitto --optional libnghttp2-dev
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python scripts/compile_imports.py
	touch $(STAMP)

demo: install ## Run the whole loop on this machine: control plane, devices, federated rounds, drift, recovery
	$(BIN)/skerry-sim demo $(DEMO)

test: check unit ## Everything that must hold: style, types, import directions, every test but the long runs

check: install ## Style, types, import directions, freshness of generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_proto.py --check

unit: install ## Every test but the soak runs
	scripts/install-system-packages.sh mosquitto mosquitto-clients chromium
	@# Real processes on a busy machine may lose a race once; a test that needs its second try is shown as "rerun".
	$(BIN)/pytest -m "not soak" --numprocesses 2 --dist loadfile --no-loadscope-reorder --reruns 1 --durations=15

soak: install ## The long runs: eight phones, kills in every phase, the package in a fresh Debian
	scripts/install-system-packages.sh mosquitto mosquitto-clients chromium debootstrap
	SKERRY_DEMO_DEVICES=8 SKERRY_DEMO_ROUNDS=0 $(BIN)/pytest -m "soak or demo"

fuzz: install ## Fuzz every parser of bytes from the wire with atheris: make fuzz [NAME=tensors] [TIME=60, seconds each]
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	set -e; for target in $(or $(NAME),$$($(BIN)/python tests/fuzz/run.py --list 2>/dev/null)); do \
		echo "== $$target"; $(BIN)/python tests/fuzz/run.py $$target $(TIME); \
	done

bench: install ## Benchmarks beside peers and limits: make bench [NAME=inference] [JSON=out.json]
	$(BIN)/python benchmarks/run.py $(NAME) $(if $(JSON),--json $(JSON))

proto: install ## Generate the protobuf code anew
	$(BIN)/python scripts/generate_proto.py

deb: install ## Build the agent as a Debian package into dist/
	firmware_images/build-deb.sh

clean: ## Remove what was built, keep the environment
	rm -rf build dist demo-out .mypy_cache .pytest_cache .ruff_cache
