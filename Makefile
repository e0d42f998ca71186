# Métier in a few targets; `make help` names them. Each needs only Python 3.11+ (or uv) and installs the rest itself.

PYTHON ?= python3
STACK = .venv/bin/python infra/local/stack.py
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python .venv/bin/python,.venv/bin/pip install --quiet --disable-pip-version-check)
TOO_OLD = Métier needs Python 3.11 or newer with its venv module, or uv. Install one, or set PYTHON=/path/to/python.

.DEFAULT_GOAL := help
.PHONY: help demo test tests chaos check kube images up down

help: ## Say what there is
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

demo: .venv/.run ## Watch a team of agents finish a task in a sandbox (ARGS=... are passed on)
	@$(STACK) run --only docker -- .venv/bin/metier demo $(ARGS)

test: ## Check style, types and layers, then run every test on real services (ARGS=... go to pytest)
	@$(MAKE) --no-print-directory -j2 tests kube

tests: check
	$(STACK) run --state .metier/test --ports auto -- .venv/bin/pytest $(ARGS)

chaos: .venv/.dev ## Break roles and services 1,000 times under 10,000 runs, and check that no promise was broken (an hour or more)
	$(STACK) run --state .metier/chaos --ports auto -- .venv/bin/metier chaos --runs 10000 --kills 1000 --json $(ARGS)

check: .venv/.dev ## Check format, style, types and layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/mypy infra/local infra/images/sandbox infra/images/runtime
	.venv/bin/pyright
	.venv/bin/lint-imports

kube: ## Build what checks the chart and runs a cluster of fake nodes (minutes, once)
	@$(PYTHON) infra/local/kubetools.py lint cluster keda monitoring promtool >/dev/null

images: .venv/.run ## Build the images of all roles and of sandboxes, from this machine's own Python (ARGS=... are their names)
	@$(STACK) run --only docker -- .venv/bin/python infra/local/images.py build $(ARGS)

up: .venv/.run ## Start Kafka, Postgres, Redis, an engine and all of Métier's roles
	@$(STACK) up --roles

down: ## Stop all that `make up` started; the data stays
	@$(or $(wildcard .venv/bin/python),$(PYTHON)) infra/local/stack.py down

.venv/bin/python:
	@rm -rf .venv
	@$(if $(UV),$(UV) venv --quiet --python '>=3.11' .venv,\
	  $(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || { echo '$(TOO_OLD)' >&2; exit 1; }; $(PYTHON) -m venv .venv)

.venv/.run: requirements/run.lock pyproject.toml | .venv/bin/python
	@echo "Installing what Métier runs on"
	@$(INSTALL) -r requirements/run.lock
	@$(INSTALL) --no-deps -e .
	@touch $@

.venv/.dev: requirements/dev.lock .venv/.run
	@echo "Installing what its tests need"
	@$(INSTALL) -r requirements/dev.lock
	@touch $@
