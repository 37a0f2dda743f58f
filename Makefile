# Two commands: `make train` runs the main job, `make test` runs lint, types and all tests.
# Each installs what it needs into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test lint format clean

train: $(VENV)/train.installed
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m dist_lookahead train configs/digits/slowmo.yaml

test: $(VENV)/dev.installed lint
	$(BIN)/pytest -q -n 2 --dist loadfile

lint: $(VENV)/dev.installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: $(VENV)/dev.installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

$(VENV)/train.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train]'
	touch $@

$(VENV)/dev.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/train.installed

clean:
	rm -rf $(VENV)
