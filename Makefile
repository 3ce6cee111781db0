# make sweep: sets up .venv and runs the README's sweep.   make test: sets up .venv and runs every test.
# make bench: see docs/performance.md.
PYTHON ?= python3
# Compiled modules are kept whatever the shell says: tests start many processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: sweep test test-fast lint bench

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --no-compile --editable '.[demo,dev]'
	touch $@

sweep: .venv/installed
	.venv/bin/python train.py -m model=finetune model.pct_unfreeze=0,0.25,0.5,1.0

# Two tests at a time, with one thread each.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal

test: .venv/installed
	$(PYTEST)

test-fast: .venv/installed
	$(PYTEST) -m 'not slow'

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

# About an hour on two cores; run nothing else meanwhile.
bench: .venv/installed
	.venv/bin/python bench/run.py
