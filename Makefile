# Common tasks; `make` lists them. Needs make and Python 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Processes that run tests: one per core, from 2 to 8, because each may start a Ray of its own.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((n < 2 ? 2 : n > 8 ? 8 : n)))
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo grid-demo results-ui test test-all fuzz chaos lint format demo-test wheel-test sbom audit head clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: .venv/.run ## run the whole workflow on built-in photographs (minutes)
	$(BIN)/python -m pipeline.run --config configs/demo.yaml

grid-demo: .venv/.run ## train the four cells of the grid on built-in photographs; WEIGHTS=VGG19.safetensors
	$(BIN)/python -m pipeline.tune --config configs/grid-demo.yaml $(if $(WEIGHTS),--train.perceptual.weights "$(WEIGHTS)") \
	  $(if $(SQUEEZENET),--evaluate.squeezenet "$(SQUEEZENET)")

results-ui: .venv/.run ## show the recorded trainings in the MLflow UI, until Ctrl-C; PORT=5000
	@home=$$(mktemp -d); trap 'rm -rf "$$home"' EXIT; trap 'exit 0' INT TERM; \
	$(BIN)/python -m pipeline.publish mlflow --home "$$home" --port $(or $(PORT),5000) \
	  && $(BIN)/mlflow ui --backend-store-uri "sqlite:///$$home/mlflow.db" --port $(or $(PORT),5000)

test: .venv/.test ## run the default tests; WORKERS=N sets the number of processes
	$(PYTEST)

test-all: .venv/.test ## run the default tests and the long ones
	$(PYTEST) -m ''

fuzz: .venv/.test ## feed thousands of damaged files to everything that reads files (minutes)
	$(PYTEST) -m '' tests/fuzz

chaos: .venv/.test ## kill and disturb parts of a local stack while commands run (40 minutes); CASE=NAME SEED=N
	$(BIN)/python -m tests.chaos --seed $(or $(SEED),0) $(if $(CASE),--case $(CASE),--table docs/explanation/faults.md)

lint: .venv/.lint ## check style, types and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.lint ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo-test: .venv/.run ## run the demo with 30 steps in a temporary folder
	@home=$$(mktemp -d); trap 'rm -rf "$$home"' EXIT; \
	$(BIN)/python -m pipeline.run --config configs/demo.yaml --train.length '30 steps' --home "$$home" \
	  && test -s "$$(echo "$$home"/workflows/*/report.html)"

wheel-test: .venv/.pip ## build the wheel, install it into an empty environment and upscale an image
	.ci/wheel-test

sbom: .venv/.run .venv/audit/.done ## list the installed packages in build/sbom.json (CycloneDX)
	@mkdir -p build
	.venv/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
	  --output-file build/sbom.json $(BIN)/python

audit: .venv/audit/.done ## compare constraints.txt with known vulnerabilities (needs the internet)
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

head: .venv/.run ## start a local Ray head for `ray job submit`, until Ctrl-C
	@infra/head

clean: ## remove the environment and caches; outputs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

.venv/.pip: constraints.txt # dependency groups need pip 25.1
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) 'pip>=25.1'
	touch $@

.venv/audit/.done: .venv/.pip pyproject.toml
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --disable-pip-version-check 'pip>=25.1'
	.venv/audit/bin/python -m pip install --disable-pip-version-check --group audit
	touch $@

.venv/.run: .venv/.pip pyproject.toml
	$(PIP) -e '.[onnx,serve]'
	touch $@

.venv/.test: .venv/.pip pyproject.toml
	$(PIP) -e '.[local,onnx,serve]' --group test
	touch $@ .venv/.run

.venv/.lint: .venv/.pip pyproject.toml
	$(PIP) -e '.[local,onnx,serve]' --group lint
	touch $@ .venv/.run .venv/.test
