# The project's verbs. `make fit CONFIG=configs/space_invaders.yaml`, `make fit ARGS="--trainer.max_epochs 1"`.
PYTHON ?= python3
VENV := .venv
CONFIG ?= configs/quickstart.yaml
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: fit test test-slow check docs tensorboard clean

fit: $(VENV)/.fit  ## train a configuration and report
	$(VENV)/bin/python cli.py fit --config $(CONFIG) $(ARGS)

test: $(VENV)/.dev check  ## style, types and all quick tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto --dist worksteal

test-slow: $(VENV)/.dev  ## the tests that take minutes
	$(VENV)/bin/python -m pytest -q -m slow

check: $(VENV)/.dev
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell bayes_rl benchmarks configs docs README.md CHANGELOG.md setup.cfg

docs: $(VENV)/.docs  ## the documentation site, into build/docs; every warning is an error
	$(VENV)/bin/python -m sphinx --fresh-env --fail-on-warning --quiet docs build/docs

tensorboard: $(VENV)/.fit  ## watch all runs
	@echo "the curves that matter: http://localhost:6006/#custom_scalars"
	$(VENV)/bin/python -m tensorboard.main --logdir runs

clean:  ## remove the virtual environment and caches, never runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("bayes_rl needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.fit: setup.cfg constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[minatar,classic]'
	@touch $@

$(VENV)/.docs: setup.cfg constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.dev: setup.cfg constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.fit $(VENV)/.docs
