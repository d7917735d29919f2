# Everything here needs only python3 (3.11 or newer), make and a C compiler.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: test check lint types clean

test: $(INSTALLED)
	$(BIN)/pytest -q

check: lint types test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy can't see through the editable install's import hook: show it the packages as a tree of links.
types: $(INSTALLED)
	mkdir -p build/types/nnc
	ln -sfn $(CURDIR)/compiler/* build/types/nnc/
	ln -sfn $(CURDIR)/passes $(CURDIR)/recipes $(CURDIR)/targets build/types/nnc/
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
