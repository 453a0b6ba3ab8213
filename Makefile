# Each target makes what it needs; `make demo` and `make test` are all a new user has to know.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test gpu-test lint bench
.DEFAULT_GOAL := demo

# The environment is made again whenever the requirements change.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/petseg-run examples/pelvis.nii.gz --unit suvbw --output out --statistics --preview

test: .venv/ready
	$(BIN)/python -m pytest

# On a machine with an NVIDIA GPU: what no other machine can show.
gpu-test: .venv/ready
	$(BIN)/python -m pytest -m gpu

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready
	$(BIN)/python benchmarks/command.py
