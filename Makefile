# undoubt's tasks. Each makes its own .venv first, on a machine that has only Python >= 3.11: with uv where it is
# there, else with venv and pip. Set-up speaks on stderr; with `make -s` stdout is the command's alone.
# `make help` lists them.

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
SLOW_WORKERS ?= 2
RTT ?=
BLOCKS ?=

UPGRADE ?=

# Tests and proofs start hundreds of processes: each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: requirements sbom audit help demo test test-slow check format prove models conformance simulate simulate-coverage faults mutants bench soak build clean
.DEFAULT_GOAL := test

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 27

demo: $(STAMP) ## a shop on real servers, killed at random: ARGS="--seconds 20 --output json"
	@$(BIN)/undoubt demo $(ARGS)

test: $(STAMP) ## all fast tests, in parallel: ARGS="-k ledger -x" WORKERS=4
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: $(STAMP) ## proofs, matrices and builds as tests
	$(BIN)/python -m pytest -m slow -n $(SLOW_WORKERS) --dist worksteal $(ARGS)

check: $(STAMP) ## formats, types, layers of imports, rules of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house $(ARGS)

format: $(STAMP) ## what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

prove: $(STAMP) ## a proof: PROOF=crash ARGS=…; without PROOF their names
	@$(BIN)/python -m tests.prove $(PROOF) $(ARGS)

models: $(STAMP) ## protocols checked in every state: ARGS="--model twophase --rms 3"
	@$(BIN)/python -m tests.models $(ARGS)

conformance: $(STAMP) ## cases of others: CASES=cases.csv
	@$(BIN)/python -m tests.conformance $(CASES) $(ARGS)

simulate: $(STAMP) ## the deterministic simulation: SEED=7 or SEEDS=200
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

simulate-coverage: $(STAMP) ## which lines the simulation reaches: SEEDS=200
	@rm -rf .coverage-simulation && mkdir .coverage-simulation
	@PYTHONHASHSEED=0 $(BIN)/python -m coverage run --rcfile=tests/simulation/coverage.ini \
		-m tests.simulation --seeds $(SEEDS) $(ARGS) >&2
	@$(BIN)/python -m coverage combine -q --rcfile=tests/simulation/coverage.ini .coverage-simulation
	@$(BIN)/python -m tests.simulation.reached

faults: $(STAMP) ## kills, pauses and partitions under load: SECONDS=60 SEED=1
	@$(BIN)/python -m tests.faults --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(STAMP) ## planted bugs, each has to be found: ARGS=name
	@$(BIN)/python -m tests.mutants $(ARGS)

bench: $(STAMP) ## measures and writes docs/performance*.md: BLOCKS="raft leader"; RTT=1: at a distance of 1 ms
ifneq ($(RTT),)
	@$(BIN)/undoubt bench --rtt $(RTT) --concurrency 1 \
		--contenders naive,undoubt-sqlite,undoubt-raft,undoubt-raft-3pc,undoubt-raft-paxos $(ARGS)
else
	@$(BIN)/python -m benchmarks.page $(BLOCKS) $(ARGS)
endif

soak: $(STAMP) ## transfers for long: memory, files, tables, connections must be level: SECONDS=3600
	@$(BIN)/python -m benchmarks.soak --seconds $(SECONDS) $(ARGS)

build: ## a wheel in dist
	@sh .ci/build dist >&2

requirements: ## uv.lock, and requirements/ from it: UPGRADE=--upgrade for newer versions
	uv lock --quiet $(UPGRADE)
	for name in dev:"--extra dev" build:"--only-group build" \
		image:"--extra certs --extra relay --extra sidecar --extra uvloop"; do \
		uv export --quiet --frozen --no-header --no-annotate --no-emit-project --no-default-groups \
			--format requirements.txt $${name#*:} --output-file requirements/$${name%%:*}.txt || exit 1; \
	done

sbom: $(STAMP) ## what the image is made of, as CycloneDX, in dist
	@mkdir -p dist
	@$(BIN)/cyclonedx-py requirements requirements/image.txt --pyproject pyproject.toml --output-reproducible \
		--sv 1.6 --of JSON --output-file dist/undoubt.cdx.json

audit: $(STAMP) ## known vulnerabilities of what the image is made of: needs PyPI's own database
	@sh .ci/audit $(ARGS)

clean: ## everything that was made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml requirements/dev.txt requirements/build.txt
	@sh .ci/venv $(VENV) $(EXTRAS) >&2
	@touch $(STAMP)
