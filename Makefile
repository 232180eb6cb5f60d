# Everything a person or CI runs. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
SIMULATION ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo up down test check fmt docs bench chaos lock clean

help:  ## list what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16

setup: $(VENV)/.ready  ## install system packages that are missing, and the locked Python packages into .venv
	@.ci/system-packages

$(VENV)/.ready: requirements.lock pyproject.toml .ci/python-packages .ci/uv.txt api/console/package-lock.json
	@.ci/system-packages
	@PYTHON="$(PYTHON)" .ci/python-packages $(VENV)
	@$(BIN)/python -m api.console.assets || echo "everything but the console's live parts works without them" >&2
	@touch $@

demo: setup  ## the whole way of a model on this machine (ARGS="--slide FILE", ARGS=--json)
	@$(BIN)/mhs demo $(ARGS)

up: setup  ## start the platform on this machine
	@$(BIN)/mhs up $(ARGS)

down:  ## stop it
	@$(BIN)/mhs down $(ARGS)

test: setup  ## all tests (ARGS="tests/unit -k token")
	@.ci/system-packages test
	@$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 2 --dist loadscope --no-loadscope-reorder)

check: setup  ## format, lint, types, import rules: what CI and pre-commit run
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/mypy --explicit-package-bases docs/hooks
	@$(BIN)/lint-imports

fmt: setup  ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup  ## build the documentation into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

bench: setup  ## list the benchmarks, or run one (ARGS="jobs --json")
	@$(BIN)/mhs bench $(ARGS)

chaos: setup  ## simulate, then kill the platform in its parts and count what is lost (ARGS="--jobs 200 --seed 1")
	@.ci/system-packages test
	@$(BIN)/python -m tests.simulation.simulate $(SIMULATION)
	@$(BIN)/python -m tests.chaos.chaos $(ARGS)
	@$(BIN)/python -m tests.chaos.partition

lock:  ## resolve the dependencies anew into requirements.lock, without naming a registry
	@uv pip compile pyproject.toml --extra demo --group dev --group docs --universal --generate-hashes --no-emit-index-url \
		--no-header --quiet -o requirements.lock
	@echo uv | uv pip compile - --universal --generate-hashes --no-emit-index-url --no-header --quiet -o .ci/uv.txt

clean:  ## remove .venv and every cache
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist demo-output
