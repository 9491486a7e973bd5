# Every command of the README. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo serve test check audit unit ray dist dist-check bench loadtest clean

help:           ## list the commands
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/runtime  ## serve the shipped ladder, send its test images through HTTP, print the table, stop
	$(BIN)/cascade demo deployments/fashion/cascade.yaml

serve: $(VENV)/runtime  ## serve the shipped ladder until Ctrl-C
	$(BIN)/cascade serve deployments/fashion/cascade.yaml

test: check unit ray  ## everything that must pass

check: $(VENV)/dev audit  ## style, types, import floors, and known vulnerabilities where the registry tells of them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(VENV)/bin/python  ## known vulnerabilities of what constraints.txt installs, or why nobody could look
	$(BIN)/python .ci/audit.py $(VENV)/audit

unit: $(VENV)/dev  ## the tests that need no cluster: under a minute or two
	$(BIN)/pytest -m "not ray" -q

ray: $(VENV)/dev  ## the tests against a real local Ray: minutes
	$(BIN)/pytest -m ray -q

dist: $(VENV)/dev  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation

dist-check: $(VENV)/dev  ## build them, install the wheel in an environment of its own, and work with it there
	$(BIN)/pytest tests/test_release.py -q

bench: $(VENV)/dev  ## the server beside its peers, under half an hour; writes its table into docs/results.md
	$(BIN)/python -m benchmarks.serving --memory

loadtest: $(VENV)/dev  ## start the server and two baselines, put them under load, print the verdict on the server
	$(BIN)/python -m loadtests.run --set short

clean:          ## remove what the commands made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "cascade needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/bin/python pyproject.toml constraints.txt deployments/sentiment/requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps -r deployments/sentiment/requirements.txt
	touch $@ $(VENV)/runtime
