# undoubt's tasks. Each makes its own .venv first, on a machine that has only Python >= 3.11: with uv where it is
# there, else with venv and pip. Set-up speaks on stderr; with `make -s` stdout is the command's alone.
#
#   make demo  [ARGS="--seconds 20 --output json"]      make test [ARGS="-k ledger -x"]      make check
#   make prove PROOF=crash [ARGS=…]                     make conformance CASES=cases.csv     make build
#   make models ARGS="--model twophase --rms 3"
#   make simulate SEED=7 | SEEDS=200 [ARGS=…]           make mutants [ARGS=name]
#   make faults SECONDS=60 SEED=1 [ARGS=…]
# `make check` besides formats nothing: `make format` does.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-pyproject
EXTRAS := dev
ROOMS := undoubt recovery coordinator participants migrations tests
ARGS ?=
PROOF ?=
CASES ?= ../shared/conformance/xa_outcomes.csv

SEED ?=
SEEDS ?= 200
SECONDS ?= 60
WORKERS ?= auto

.PHONY: demo test test-slow check format prove models conformance simulate simulate-coverage faults mutants build clean
.DEFAULT_GOAL := test

demo: $(STAMP)
	@$(BIN)/undoubt demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist worksteal $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

prove: $(STAMP)
	@$(BIN)/python -m tests.prove $(PROOF) $(ARGS)

models: $(STAMP)
	@$(BIN)/python -m tests.models $(ARGS)

conformance: $(STAMP)
	@$(BIN)/python -m tests.conformance $(CASES) $(ARGS)

simulate: $(STAMP)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

simulate-coverage: $(STAMP)
	@rm -rf .coverage-simulation && mkdir .coverage-simulation
	@PYTHONHASHSEED=0 $(BIN)/python -m coverage run --rcfile=tests/simulation/coverage.ini \
		-m tests.simulation --seeds $(SEEDS) $(ARGS) >&2
	@$(BIN)/python -m coverage combine -q --rcfile=tests/simulation/coverage.ini .coverage-simulation
	@$(BIN)/python -m tests.simulation.reached

faults: $(STAMP)
	@$(BIN)/python -m tests.faults --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(STAMP)
	@$(BIN)/python -m tests.mutants $(ARGS)

build: $(STAMP)
	@if command -v uv >/dev/null; then uv build --quiet --wheel --out-dir dist; \
	else $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .; fi >&2

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml
	@sh .ci/venv $(VENV) $(EXTRAS) >&2
	@touch $(STAMP)
