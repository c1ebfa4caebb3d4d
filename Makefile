# `make` lists the targets. Each creates .venv first if it is missing or the lock has changed.
SCENARIO ?= movielens
DAYS ?= 5
DATA ?=
JOBS ?= 3
ROLES ?= step airflow mlflow notebook $(if $(LOCAL),local-services)
PYTHON_IN := .venv/bin/python
# Three workers for two cores: one runs all tests of containers, which start first and mostly wait for other processes.
SHARES := --dist loadfile --no-loadscope-reorder
# Where it is set, each process compiles the project again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help environment demo down compose-up compose-down images test test-containers test-fast lint format docs reference screenshots dvc benchmark-peers

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | awk -F'\t' '{printf "make %-16s %s\n", $$1, $$2}'

environment: ## create .venv from infra/requirements.lock; does nothing where it is up to date
	@infra/environment.sh

demo: environment ## run SCENARIO=movielens for DAYS=5 in Airflow; DATA=folder for your own logs
	@$(PYTHON_IN) -m infra.demo --scenario "$(SCENARIO)" --days "$(DAYS)" $(if $(DATA),--data "$(DATA)")

down: ## stop the servers that `make demo` started
	@if [ -x $(PYTHON_IN) ]; then $(PYTHON_IN) -m infra.down; else echo "nothing was running"; fi

PLATFORM = $(PYTHON_IN) -m infra.platform $(if $(DATA),--data "$(DATA)") $(if $(TAG),--tag "$(TAG)") $(if $(IMAGES),--images "$(IMAGES)")
COMPOSE = .venv/bin/docker-compose --env-file .recloop/platform/compose.env -f infra/compose.yaml $(if $(LOCAL),-f infra/compose/local/compose.yaml)

compose-up: environment ## run the whole platform in containers on this host; needs a container engine and `make images` (with the same LOCAL=1)
	@addresses=$$($(PLATFORM)) && $(COMPOSE) up --detach --wait --wait-timeout 600 && echo "$$addresses"

compose-down: ## stop the platform; its folders under .recloop/platform stay
	@if [ -f .recloop/platform/compose.env ]; then $(COMPOSE) down --remove-orphans; else echo "nothing was running"; fi

test: environment lint ## lint, then all tests; container tests run where an engine can be started (infra/engine.sh)
	@$(PYTHON_IN) -m pytest -n $(JOBS) $(SHARES)

test-containers: environment ## only the tests that need a container engine
	@$(PYTHON_IN) -m pytest -m container

test-fast: environment ## tests under four seconds each
	@$(PYTHON_IN) -m pytest -n 2 $(SHARES) -m "not slow and not airflow and not gpu and not container"

dvc: environment ## run the scenario's days with `dvc repro`
	@.venv/bin/dvc repro

lint: environment ## check style, types and layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: environment ## fix and format the code
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

benchmark-peers: environment ## create .venv-peers, for peers of benchmarks/ that conflict with .venv
	@benchmarks/peers/environment.sh

images: environment ## build images of all roles from this checkout; ROLES="step", LOCAL=1 where no registry can be reached
	@$(PYTHON_IN) -m infra.images build $(ROLES) $(if $(LOCAL),--local)

screenshots: environment ## take pictures of the running demo for docs/images (needs Debian's chromium)
	@$(PYTHON_IN) -m infra.screenshots --scenario "$(SCENARIO)"

docs: environment ## the site of the docs into .recloop/docs; a warning is an error
	@.venv/bin/python -m sphinx -W --keep-going -q -d .recloop/doctrees docs .recloop/docs && echo .recloop/docs/index.html

reference: environment ## docs/reference.md from the schema
	@$(PYTHON_IN) -m infra.reference
