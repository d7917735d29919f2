# Everything here needs only python3 (3.11 or newer), make and a C compiler.
PYTHON := python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test check lint types bench clean

help:
	@echo "make demo     write an example into demo/, compile it, and say where the report is"
	@echo "make install  the command nnc: $(BIN)/nnc"
	@echo "make test     the tests"
	@echo "make check    ruff, mypy and the tests"
	@echo "make bench    the tables of tests/bench; takes a long time"
	@echo "make clean    remove what make made, demo/ too"

install: $(INSTALLED)

demo: demo/model.onnx
	$(BIN)/nnc compile demo/recipe.toml demo/model.onnx --target x86 -o demo/out
	@echo
	@echo "Open $(CURDIR)/demo/out/report.html in a browser."
	@echo "Next: compile a model of yours, $(BIN)/nnc compile simplify my-model.onnx --target x86"

demo/model.onnx: | $(INSTALLED)
	$(BIN)/nnc example demo

test: $(INSTALLED)
	$(BIN)/pytest -q -n auto --maxprocesses 4

check: lint types test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy can't see through the editable install's import hook: show it the packages as a tree of links.
types: $(INSTALLED)
	rm -rf build/types && mkdir -p build/types/nnc
	for part in compiler/* passes recipes targets; do ln -s "$(CURDIR)/$$part" build/types/nnc/; done
	$(BIN)/mypy

bench: $(INSTALLED)
	$(PIP_INSTALL) -e ".[bench]"
	failed=0; for table in tests/bench/*.py; do $(BIN)/python $$table || failed=1; done; exit $$failed

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing nnc and its packages into $(VENV), some minutes and 2 GB or more the first time"
	@$(PIP_INSTALL) -e ".[dev]"
	@touch $@

# Once: another python3 in the same folder would be a mixture of both.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nnc needs Python 3.11 or newer; $(PYTHON) is %s.%s: name another, as in make PYTHON=python3.12 $(or $(MAKECMDGOALS),help)" % sys.version_info[:2])'
	@$(PYTHON) -m venv --clear $(VENV)

clean:
	rm -rf $(VENV) build dist demo *.egg-info
