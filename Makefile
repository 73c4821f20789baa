# From a bare clone: `make demo` grades a sample class, `make lab` opens the course, `make test` is what CI runs.
PYTHON ?= python3
BIN := .venv/bin
CHROMIUM = $(shell command -v chromium || command -v chromium-browser)

.DEFAULT_GOAL := help
.PHONY: help demo test chromium browser pictures lint check release lab

help:
	@echo "make demo      install, build the releases, grade the sample class, write its report"
	@echo "make lab       open the course in JupyterLab (OPTIONS=--no-browser: print the address only)"
	@echo "make test      lint, types, tests, and the course's check of itself"
	@echo "make browser   the course in a real browser; needs Chromium (apt-get install chromium)"
	@echo "make pictures  take the README's pictures again, from a class graded for them"
	@echo "make release   rebuild source notebooks and student versions after an edit"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' || \
		{ echo "Not everything could be installed, for the reason above. Without network: connect, then run the same command again."; exit 1; }
	@touch $@

demo: .venv/installed
	$(BIN)/python -m autograder demo

lab: .venv/installed
	$(BIN)/python -m puzzles --prepare
	$(BIN)/jupyter lab --notebook-dir work --LabApp.default_url=/lab/tree/START.ipynb \
		--ServerApp.jpserver_extensions nbgrader.server_extensions.formgrader=False $(OPTIONS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: .venv/installed
	$(BIN)/python -m autograder check

test: lint check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not browser"
	@if [ -n "$(CHROMIUM)" ]; then $(MAKE) browser; \
	else echo "There is no Chromium here, so the browser tests did not run: apt-get install chromium, then make browser."; fi

.venv/browser: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	@touch $@

chromium:
	@[ -n "$(CHROMIUM)" ] || { echo "The browser tests need Chromium: apt-get install chromium, then make browser." >&2; exit 2; }

browser: chromium .venv/browser
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser

pictures: chromium .venv/browser
	$(BIN)/python -m tests.browser.pictures

release: .venv/installed
	$(BIN)/python -m autograder release
