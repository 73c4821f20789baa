# From a bare clone: `make demo` grades a sample class, `make lab` opens the course, `make test` is what CI runs.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test browser lint check release lab

help:
	@echo "make demo      install, build the releases, grade the sample class, write its report"
	@echo "make lab       open the course in JupyterLab"
	@echo "make test      lint, types, tests, and the course's check of itself"
	@echo "make browser   the labs in a real browser; needs Chromium (apt-get install chromium)"
	@echo "make release   rebuild source notebooks and student versions after an edit"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/python -m autograder demo

lab: .venv/installed
	$(BIN)/python -m puzzles --prepare
	$(BIN)/jupyter lab --notebook-dir work

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: .venv/installed
	$(BIN)/python -m autograder check

test: lint check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not browser"

browser: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	$(BIN)/pytest tests/browser

release: .venv/installed
	$(BIN)/python -m autograder release
