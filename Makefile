# The two commands that do everything: make demo, make test. Needs Python 3.11 or newer and make.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo grid-demo results-ui test test-all lint format head clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.run ## set up, then the whole workflow on built-in photographs (minutes)
	$(BIN)/python -m pipeline.run --config configs/demo.yaml

grid-demo: .venv/.run ## the four cells of the grid on built-in photographs; WEIGHTS=VGG19.safetensors
	$(BIN)/python -m pipeline.tune --config configs/grid-demo.yaml $(if $(WEIGHTS),--train.perceptual.weights $(WEIGHTS)) \
	  $(if $(SQUEEZENET),--evaluate.squeezenet $(SQUEEZENET))

results-ui: .venv/.run ## the recorded trainings in the MLflow UI, until Ctrl-C
	@home=$$(mktemp -d); trap 'rm -rf "$$home"' EXIT; trap 'exit 0' INT TERM; \
	$(BIN)/python -m pipeline.publish mlflow --home "$$home" && $(BIN)/mlflow ui --backend-store-uri "sqlite:///$$home/mlflow.db"

test: .venv/.test ## set up, then the default test suite
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: .venv/.test ## the default suite and the long tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m ''

lint: .venv/.lint ## ruff, type checker, layering of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.lint ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

head: .venv/.run ## start a local Ray head for `ray job submit`, until Ctrl-C
	@infra/head

clean: ## remove the environment and caches; outputs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/.run: .venv/.made pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/.test: .venv/.made pyproject.toml constraints.txt
	$(PIP) -e '.[test]'
	touch $@ .venv/.run

.venv/.lint: .venv/.made pyproject.toml constraints.txt
	$(PIP) -e '.[test,lint]'
	touch $@ .venv/.run .venv/.test
