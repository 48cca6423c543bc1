.PHONY: check test lint

STAMP = .venv/.stamp-dev
PYTHON = .venv/bin/python

check: lint test

test: $(STAMP)
	$(PYTHON) -m pytest -n 2

lint: $(STAMP)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/shellcheck launch.sh .ci/run slurm/*.sbatch tests/lab_host.sh tests/quick_g++

$(STAMP): pyproject.toml constraints.txt
	./launch.sh --setup dev
	@touch $@
