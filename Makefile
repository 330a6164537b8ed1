# Every command of the project; `make help` lists them. CI calls these same targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,serve,flows,dev
DEMO_CONFIG ?= configs/demo.yaml
SMOKE_CONFIG ?= configs/smoke.yaml
PYTEST_ARGS ?=
# Files side by side, each whole on one core, so that what a file starts once stays started once.
PYTEST_PARALLEL ?= --numprocesses auto --maxprocesses 4 --dist loadfile
TRAINER_IMAGE ?= mario-trainer:dev
SERVING_IMAGE ?= mario-serving:dev
TORCH_FLAVOUR ?= cpu
# The commit that images name as theirs, and deployments made from them as their version.
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

# What ends with a results file; the others beside them make their data.
BENCHMARKS = $(shell grep -l "_report import.*finish" benchmarks/[!_]*.py)
NATIVE_SOURCES := $(wildcard CMakeLists.txt) $(shell find mario -name '*.cpp' -o -name '*.hpp')

# Libraries that call home are told not to, in everything that is run from here.
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export BENTOML_DO_NOT_TRACK := True
export WANDB_ERROR_REPORTING := false
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo smoke test test-slow lint types bench sanitize dashboards docs docker-build clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp-dependencies $(VENV)/.stamp-native ## Make .venv with pinned dependencies and the native console (second call: instant)

$(VENV)/.stamp-dependencies: pyproject.toml constraints.txt scripts/setup.sh
	bash scripts/setup.sh dependencies "$(PYTHON)" "$(VENV)" "$(EXTRAS)"
	@touch $@

$(VENV)/.stamp-native: $(VENV)/.stamp-dependencies $(NATIVE_SOURCES)
	bash scripts/setup.sh native "$(PYTHON)" "$(VENV)" "$(EXTRAS)"
	@touch $@

demo: setup ## Train, register, evaluate, judge, promote and serve an agent on level 1-1 (about 6 minutes)
	$(BIN)/mario pipeline --config $(DEMO_CONFIG) --next-seed

smoke: setup ## Train a few hundred steps, to see that training works at all
	$(BIN)/mario train --config $(SMOKE_CONFIG)

test: setup ## Run every test that is quick enough for each change
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_PARALLEL) $(PYTEST_ARGS)

test-slow: setup ## Run the tests that take minutes (servers, Docker, browsers, chaos)
	$(BIN)/python -m pytest -m slow --timeout 1800 $(PYTEST_ARGS)

lint: setup ## Check style, layers, workflows, containers, manifests, alert rules and docs
	BIN=$(BIN) bash scripts/lint.sh

types: setup ## Check types (mypy, strict)
	$(BIN)/mypy

bench: setup ## Run every benchmark and rewrite benchmarks/results/ (BENCH_ARGS=--quick: only look)
	@missed=; for file in $(BENCHMARKS); do \
		echo "== $$file"; $(BIN)/python "$$file" $(BENCH_ARGS) || missed="$$missed $$file"; \
	done; if [ -n "$$missed" ]; then echo "missed a target or failed:$$missed"; exit 1; fi

sanitize: setup ## Fuzz the native console under address, undefined-behaviour and thread sanitizers
	bash scripts/sanitize.sh "$(BIN)"

dashboards: setup ## Render alert rules, dashboards and the runbooks' index from mario/alerting
	$(BIN)/python -m mario.alerting

docs: setup ## Build the documentation site into site/
	$(BIN)/mkdocs build --strict

docker-build: ## Build both images (TORCH_FLAVOUR=cpu or cuda)
	DOCKER_BUILDKIT=1 docker build --file docker/trainer.Dockerfile --build-arg TORCH_FLAVOUR=$(TORCH_FLAVOUR) --build-arg REVISION=$(REVISION) --tag $(TRAINER_IMAGE) .
	DOCKER_BUILDKIT=1 docker build --file docker/serving.Dockerfile --build-arg REVISION=$(REVISION) --tag $(SERVING_IMAGE) .

clean: ## Delete everything that was built here; runs/ stays
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
