# Nothing is needed before `make demo` or `make test`: both create .venv first.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest/bin
FAST := not slow and not statistical and not gpu and not ray

# A file stays with one worker, so that what its fixtures make is made once; in the order of their
# names the long ones (tests/cli, tests/docs) come first, so that the workers end together.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25
TYPED := tests/contract tests/properties tests/parity tests/unit/core
CHECKED := "--jaxtyping-packages=offramp,beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

.PHONY: help env demo test lint types imports unit clean
.PHONY: docs docs-serve wheel
.PHONY: test-all test-docs test-typed test-slow test-statistical test-gpu test-ray test-oldest

help:
	@echo "demo              train, cut, promise and report on digits: a minute"
	@echo "test              what CI runs: lint, types, imports, unit"
	@echo "unit              the fast tests"
	@echo "test-slow         the other variants of slow families; properties with many examples"
	@echo "test-typed        the fast tests, with annotations checked at run time everywhere"
	@echo "test-statistical  repetition at full size"
	@echo "test-oldest       the fast tests with the lowest versions that the ranges allow"
	@echo "test-gpu          what needs a CUDA device"
	@echo "test-ray          what starts a cluster of Ray on this machine"
	@echo "test-docs         the pages of the site, in a browser where there is one"
	@echo "test-all          all of these"
	@echo "docs              the documentation, as a site in site/ that works offline"
	@echo "docs-serve        the same, shown on this machine and built anew when a page changes"
	@echo "wheel             the package to install, in dist/"
	@echo "clean             remove what these made"

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
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

# Annotations are checked at run time (beartype, jaxtyping) in the folders where every part meets
# every other; that takes twice the time, so elsewhere only `make test-typed` does it.
unit: env
	$(PYTEST) -m "$(FAST)" $(CHECKED) $(TYPED)
	$(PYTEST) -m "$(FAST)" $(TYPED:%=--ignore=%)

test-typed: env
	$(PYTEST) -m "$(FAST)" $(CHECKED)

test-slow: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs,zoo]'
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile=thorough

test-statistical: env
	$(PYTEST) -m statistical

test-gpu: env
	$(BIN)/python -m pytest -m gpu

test-ray: env
	$(BIN)/python -m pytest -m ray

# The lowest versions that the ranges allow, in an environment of its own. What is deprecated between
# an old package and a new one is no fault of ours, and of no use to know: those warnings pass. Types
# are checked by `unit`: the first jaxtyping takes several times as long for it.
test-oldest: .venv-oldest/.installed
	$(OLDEST)/python -m pytest -n 2 -m "$(FAST)" -W ignore::DeprecationWarning \
		-W ignore::PendingDeprecationWarning -W ignore::FutureWarning

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/python || $(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	touch $@

# The site is no part of `dev`: a hundred megabytes that no other test needs (docs/adr/0061).
.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: .venv/.docs
	-$(BIN)/python tools/vendor_onnxruntime_web.py # without it a page of the playground says so
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html"

docs-serve: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

.venv/bin/python:
	$(PYTHON) -m venv .venv

wheel: .venv/bin/python
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

test-docs: .venv/.docs
	$(BIN)/python -m pytest tests/docs/test_site.py -m "slow or not slow"

test-all: test test-docs test-typed test-slow test-statistical test-gpu test-ray

clean:
	rm -rf .venv .venv-oldest runs site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
