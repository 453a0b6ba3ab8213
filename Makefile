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

# ONNX Runtime for the CPU and for the GPU overwrite each other's files; classic TensorRT is for data-centre cards.
.venv-gpu/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	.venv-gpu/bin/python -m pip uninstall --quiet --yes onnxruntime
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check 'onnxruntime-gpu[cuda,cudnn]>=1.31' tensorrt
	touch $@

# On a machine with an NVIDIA GPU: what no other machine can show.
gpu-test: .venv-gpu/ready
	.venv-gpu/bin/python -m pytest -m gpu

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
