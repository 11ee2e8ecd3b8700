# `make train` and `make test` do all the set-up themselves; each environment is made once and reused.
PYTHON ?= python3
TORCH ?= torch==2.13.0
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: train test test-full test-gpu lint check bench clean

train: .venv/ready
	.venv/bin/fastgrpo train quickstart --overwrite

test: .venv/ready-dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/pyright
	.venv/bin/python -m pytest -m "not slow and not peers and not gpu"

test-full: .venv/ready-dev .venv-trl/ready .venv-verl/ready .venv-vllm/ready
	.venv/bin/python -m pytest -m "slow and not peers and not gpu"
	.venv-trl/bin/python -m pytest tests/peers/test_loss_against_trl.py
	.venv-verl/bin/python -m pytest tests/peers/test_loss_against_verl.py
	.venv-vllm/bin/python -m pytest tests/peers/test_export_in_vllm.py

test-gpu: .venv/ready-dev
	.venv/bin/python -m pytest -m gpu

lint: .venv/ready-dev
	.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

clean:
	rm -rf .venv .venv-* build dist *.egg-info

# torch first and alone: `$(TORCH)` names the build that suits this machine, and what comes after must not replace it.
.venv/ready: constraints/main.txt pyproject.toml setup.py
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install -q $(TORCH)
	.venv/bin/pip install -q -c constraints/main.txt -e .
	touch $@

.venv/ready-dev: .venv/ready
	.venv/bin/pip install -q -c constraints/main.txt -e '.[dev]'
	touch $@
