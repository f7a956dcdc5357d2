# make demo: install, then train and score the embedded demo.   make test: install, then run all tests.
# make gpu: on a machine with a GPU, run the tests that need one and the benchmarks, and write a table.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs gpu
demo: $(VENV)/.core
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
	$(BIN)/python -m affectgpt.confdoc > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md

# Without --no-compile, pip compiles every module of torch and transformers; Python compiles those that are imported, once,
# unless this variable (which container images like to set) makes every process compile them again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[studio,speech]' 'matplotlib>=3.8'  # of the extras, what the commands in the README use
	@touch $@

$(VENV)/.installed: $(VENV)/.core
	$(INSTALL) -e '.[dev]'
	@touch $@
