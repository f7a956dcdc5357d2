# make demo: install, then train and score the embedded demo.   make test: install, then run all tests.
# make gpu: on a machine with a GPU, run the tests that need one and the benchmarks, and write a table.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs gpu
demo: $(VENV)/.installed
	$(BIN)/python -m affectgpt.demo $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py $(ARGS)

docs: $(VENV)/.installed
	$(BIN)/python -m affectgpt.confdoc > docs/configuration.md

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
