# One command per need. `make help` lists them.
#
# Variables: KAFKA=embedded|apache   the broker of the demo (apache needs Java and Maven)
#            DEMO_SECONDS=60         ends the demo by itself
#            PYTHON=python3.12       the Python that makes .venv (3.11 to 3.13)
#            N=1000000 SEED=1        how many messages `make fuzz` tries, and which
#            KILLS=1000 SEED=1       the soak's plan; SECONDS=600 begins no new fault after so long
#            CI=true                 a skipped test is a failure

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help bench-flat bench-pressure bench-takeover setup demo test check format lock schemas reference dashboards replay-sparkov soak deploy-check image-check rehearsal fuzz audit quality bench bench-check tuning profile clean

PYTHON ?= python3
KAFKA ?= embedded
UV_VERSION := 0.13.9
BIN := .venv/bin
READY := .venv/.ready
LOCK_COMMON := --universal --python-version 3.11 --generate-hashes --no-header
LOCK_OPTIONS := $(LOCK_COMMON) --extra train --extra fast --extra otel --extra demo --extra dev
NO_SKIPS := $(if $(filter true 1,$(CI)),-p tests.plugins.no_skips)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## .venv with every dependency, from requirements.lock and its hashes

# Only when the lock or the project file is newer than the last setup. Compiled at once, because where Python may not
# write bytecode (PYTHONDONTWRITEBYTECODE) every process would compile torch anew: a second of CPU at each start.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { \
	  echo "$(PYTHON) is not here. Install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "riskstream needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V). Say PYTHON=python3.11." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. Debian: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m uv --version 2> /dev/null | grep -qF 'uv $(UV_VERSION)' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)'
	$(BIN)/python -m uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(READY) ## broker, Redis, a trained model, 2 workers and a live view; Ctrl-C ends it
	$(BIN)/riskstream demo --kafka $(KAFKA) $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

test: $(READY) ## all tests
	$(BIN)/python -m pytest $(NO_SKIPS) -n 2 --dist loadfile tests

check: $(READY) ## lint, format, types, layers, the lock and its holes, and that generated files are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m stream.schemas --check
	$(BIN)/python -m stream.reference --check
	$(BIN)/python -m deploy.grafana.build --check
	$(BIN)/python .ci/check_lock.py
	$(BIN)/python .ci/audit.py --if-reachable

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

schemas: $(READY) ## generate the JSON Schemas and the AsyncAPI document
	$(BIN)/python -m stream.schemas

reference: $(READY) ## generate the tables of docs/: settings, metrics, exit codes, ...
	$(BIN)/python -m stream.reference

dashboards: $(READY) ## generate the Grafana dashboards
	$(BIN)/python -m deploy.grafana.build

lock: $(READY) ## resolve requirements.lock anew; add UPGRADE=1 for newer versions
	$(BIN)/python -m uv pip compile --quiet $(LOCK_OPTIONS) $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements.lock
	for name in worker trainer build go; do \
	  $(BIN)/python -m uv pip compile --quiet $(LOCK_COMMON) --no-annotate --no-emit-package riskstream $(if $(UPGRADE),--upgrade) \
	    deploy/locks/$$name.in -o deploy/locks/$$name.lock; \
	done

audit: $(READY) ## ask PyPI's vulnerability database about every pin of requirements.lock; fails where it does not answer
	$(BIN)/python .ci/audit.py

fuzz: $(READY) ## N hostile messages through decoding, validation, columns and a worker in memory
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.fuzz --messages $(or $(N),1000000) --seed $(or $(SEED),1)

quality: $(READY) ## the default bundle beside LightGBM on a public card history: a report, and one line of JSON
	$(BIN)/python -m bench.quality

bench-takeover: $(READY) ## how soon a killed worker's partitions are scored again (ACCOUNTS=, KILLS=, SESSION_TIMEOUT_MS=)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.takeover $(if $(ACCOUNTS),--accounts $(ACCOUNTS)) $(if $(KILLS),--kills $(KILLS)) \
	  $(if $(SESSION_TIMEOUT_MS),--session-timeout-ms $(SESSION_TIMEOUT_MS)) $(if $(SEED),--seed $(SEED))

bench-pressure: $(READY) ## a worker at twice the rate that it can do (SECONDS=)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.pressure $(if $(SECONDS),--seconds $(SECONDS))

bench-flat: $(READY) ## a worker's memory over eight hours of event time (SECONDS=, 25 minutes by default)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.flat $(if $(SECONDS),--seconds $(SECONDS))

replay-sparkov: $(READY) ## a public card history through real Kafka and Redis, checked against offline scoring
	$(BIN)/python -m bench.replay_sparkov

deploy-check: $(READY) ## docker-compose.yml, the Dockerfile's locks and the Helm chart; builds helm the first time
	deploy/helm/tools.sh
	$(BIN)/python -m pytest $(NO_SKIPS) $(addprefix tests/deploy/test_,chart.py compose.py image.py)

image-check: $(READY) ## build both images with buildah and run them; root on Debian, about 15 minutes and 25 GB
	deploy/image_check.sh

bench: $(READY) ## every benchmark, under 20 minutes on a quiet machine; one alone: CASE=latency
	$(BIN)/python -m bench $(CASE) $(if $(QUICK),--quick)

bench-check: $(READY) ## ratios of the quick cases beside the committed ones; UPDATE=1 writes them anew
	$(BIN)/python -m bench.check $(if $(UPDATE),--update)

tuning: $(READY) ## the tables of docs/tuning.md, one setting at a time
	$(BIN)/python -m bench.tuning $(SWEEP)

profile: $(READY) ## a flame graph of the engine under load: profile.svg; CLIENT=confluent for the fast client
	$(BIN)/python -m bench.profile --client $(or $(CLIENT),kafka-python) --out profile.svg

soak: $(READY) ## kills, outages and zombies against real servers, then an independent checker: KILLS= SEED= SECONDS= VARIANT= CLIENT=
	$(BIN)/python -m tests.soak --kills $(or $(KILLS),$(if $(SECONDS),10000,50)) --seed $(or $(SEED),1) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(VARIANT),--variant $(VARIANT)) $(if $(CLIENT),--client $(CLIENT)) $(if $(RATE),--rate $(RATE)) $(if $(ONLY),--only $(ONLY))

rehearsal: $(READY) ## disasters on real Kafka and Redis under traffic, then the audit; about 3 minutes
	$(BIN)/python -m bench.rehearsal

clean: ## remove .venv and every cache
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
