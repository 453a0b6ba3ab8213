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

# nnU-Net brings its own PyTorch.
.venv-nnunet/ready: pyproject.toml
	$(PYTHON) -m venv .venv-nnunet
	.venv-nnunet/bin/python -m pip install --quiet --disable-pip-version-check . 'nnunetv2>=2.6'
	touch $@

# Patients that no training saw.
runs/unseen/cohort.csv: | .venv/ready
	$(BIN)/petseg-train simulate -o runs/unseen --patients 20 --seed 4711

# Half an hour in which the machine should do nothing else; rewrites docs/performance.md.
bench: .venv/ready .venv-nnunet/ready runs/unseen/cohort.csv
	$(BIN)/python benchmarks/performance.py --cohort runs/unseen/cohort.csv --nnunet-python .venv-nnunet/bin/python
