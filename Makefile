# Nothing is needed before `make demo` or `make test`: both create .venv first.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest/bin
FAST := not slow and not statistical and not gpu

.PHONY: env demo test lint types imports unit test-slow test-statistical test-gpu test-oldest clean

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
	$(BIN)/python -m pytest -n 2 -m "$(FAST)"

test-slow: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zoo]'
	$(BIN)/python -m pytest -m slow

test-statistical: env
	$(BIN)/python -m pytest -m statistical

test-gpu: env
	$(BIN)/python -m pytest -m gpu

# The lowest versions that the ranges allow, in an environment of its own. What is deprecated between
# an old package and a new one is no fault of ours, and of no use to know: those warnings pass. Types
# are checked by `unit`: the first jaxtyping takes several times as long for it.
test-oldest: .venv-oldest/.installed
	$(OLDEST)/python -m pytest -n 2 -m "$(FAST)" --jaxtyping-packages= -W ignore::DeprecationWarning \
		-W ignore::PendingDeprecationWarning -W ignore::FutureWarning

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/python || $(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-oldest runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
