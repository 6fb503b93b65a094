# Nothing is needed before `make demo` or `make test`: both create .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: env demo test lint types imports unit test-slow test-statistical test-gpu bench clean

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: env
	$(BIN)/offramp demo

test: lint types imports unit

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

imports: env
	$(BIN)/lint-imports

unit: env
	$(BIN)/python -m pytest -n 2 -m "not slow and not statistical and not gpu"

test-slow: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zoo]'
	$(BIN)/python -m pytest -m slow

test-statistical: env
	$(BIN)/python -m pytest -m statistical

test-gpu: env
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
