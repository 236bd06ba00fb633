# Every target does all of its own set-up; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Debian's own interpreter, so that a version manager on the PATH cannot change what is tested.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
export PGCHROMA_CACHE ?= /var/cache/pgchroma
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## List every target with one line each
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: venv
venv: $(VENV)/.ready ## Build the virtual environment from the hash-locked list

$(VENV)/.ready: requirements/dev.txt pyproject.toml
	scripts/install-system-packages
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -q --cache-dir $(PGCHROMA_CACHE)/pip --require-hashes -r requirements/dev.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

.PHONY: lock
lock: venv ## Renew the hash-locked requirements from the .in files
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install -q uv
	for name in runtime dev chroma-server; do \
		build/lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
			-o requirements/$$name.txt requirements/$$name.in; \
	done

.PHONY: serve
serve: venv ## Serve an embedded PostgreSQL in a temporary folder: make serve PORT=8000 WORKERS=2
	exec $(BIN)/pgchroma serve --embedded --allow-reset --auth off --port $(or $(PORT),8000) --workers $(or $(WORKERS),2)

.PHONY: demo
demo: venv ## Run the main job end to end on a test machine: make demo, or make demo KEEP=1 to keep the machine
	$(BIN)/python scripts/demo $(if $(KEEP),--keep)

.PHONY: test
test: lint unit molecule ## Run every check and test: linters, unit, contract, integration, machines

.PHONY: lint
lint: venv ## Check style, types and playbooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck $$(git ls-files -z ':!*.j2' | xargs -0 grep -slE '^#!.*\b(bash|sh)$$')
	$(BIN)/yamllint --strict .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline --strict

.PHONY: unit
unit: venv ## Run the unit, contract and integration tests (embedded PostgreSQL)
	$(BIN)/pytest

.PHONY: molecule
molecule: venv ## Run the Molecule scenarios on test machines: make molecule SCENARIO=default
	for scenario in $(or $(SCENARIO),default chroma_server); do \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/molecule test -s $$scenario; \
	done

.PHONY: docs
docs: venv ## Write the generated parts of the documentation anew
	$(BIN)/python scripts/generate-role-docs
	$(BIN)/python scripts/generate-cli-docs
	$(BIN)/python scripts/generate-compatibility-docs

include make/*.mk
