# `make` lists what there is. Every target makes .venv first if it is missing or the lock has changed.
SCENARIO ?= movielens
DAYS ?= 5
DATA ?=
JOBS ?= 2
ROLES ?= step airflow mlflow notebook $(if $(LOCAL),stand-ins)
PYTHON_IN := .venv/bin/python
# Containers first: they are one share, and the longest.
SHARES := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help environment demo down compose-up compose-down images test test-containers test-fast lint format docs reference screenshots dvc benchmark-peers

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | awk -F'\t' '{printf "make %-16s %s\n", $$1, $$2}'

environment: ## .venv from infra/requirements.lock; does nothing where it is up to date
	@infra/environment.sh

demo: environment ## run SCENARIO=movielens for DAYS=5 in Airflow; DATA=folder for logs of your own
	@$(PYTHON_IN) -m infra.demo --scenario "$(SCENARIO)" --days "$(DAYS)" $(if $(DATA),--data "$(DATA)")

down: ## end the servers that `make demo` started
	@if [ -x $(PYTHON_IN) ]; then $(PYTHON_IN) -m infra.down; else echo "nothing was running"; fi

PLATFORM = $(PYTHON_IN) -m infra.platform $(if $(DATA),--data "$(DATA)") $(if $(TAG),--tag "$(TAG)") $(if $(IMAGES),--images "$(IMAGES)")
COMPOSE = .venv/bin/docker-compose --env-file .recloop/platform/compose.env -f infra/compose.yaml $(if $(LOCAL),-f infra/compose/local/compose.yaml)

compose-up: environment ## the whole platform in containers of this host; needs a container engine and our images (LOCAL=1 as there)
	@told=$$($(PLATFORM)) && $(COMPOSE) up --detach --wait --wait-timeout 600 && echo "$$told"

compose-down: ## end the platform; its folders under .recloop/platform stay
	@if [ -f .recloop/platform/compose.env ]; then $(COMPOSE) down --remove-orphans; else echo "nothing was running"; fi

test: environment lint ## lint, then all tests; those of containers where an engine can be started (infra/engine.sh)
	@$(PYTHON_IN) -m pytest -n $(JOBS) $(SHARES)

test-containers: environment ## those of containers alone
	@$(PYTHON_IN) -m pytest -m container

test-fast: environment ## tests under ten seconds each
	@$(PYTHON_IN) -m pytest -n $(JOBS) $(SHARES) -m "not slow and not airflow and not gpu and not container"

dvc: environment ## run the scenario's days as `dvc repro` does, with the same steps
	@.venv/bin/dvc repro

lint: environment ## style, types, layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: environment ## bring the code into shape
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

benchmark-peers: environment ## .venv-peers, for the peers of benchmarks/ that ours has no room for
	@benchmarks/peers/environment.sh

images: environment ## images of all roles from this checkout; ROLES="step", LOCAL=1 where no registry can be reached
	@$(PYTHON_IN) -m infra.images build $(ROLES) $(if $(LOCAL),--local)

screenshots: environment ## pictures of the running demo into docs/images (needs Debian's chromium)
	@$(PYTHON_IN) -m infra.screenshots --scenario "$(SCENARIO)"

docs: environment ## the site of the docs into .recloop/docs; a warning is an error
	@.venv/bin/python -m sphinx -W --keep-going -q -d .recloop/doctrees docs .recloop/docs && echo .recloop/docs/index.html

reference: environment ## docs/reference.md from the schema
	@$(PYTHON_IN) -m infra.reference
