# Two commands need nothing installed but Python >= 3.10: `make demo` and `make test`. Both share one set-up step.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# Set by some containers; every command would compile torch and transformers anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test types suite setup lint docs clean

demo: $(READY)
	$(BIN)/calrec-lite demo

# Types are checked beside the tests: either leaves a core idle at times.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j 2 types suite

types:
	$(BIN)/mypy

suite:
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

setup: $(READY)

# The stamp is written last: a set-up that was interrupted is done again from where pip finds it.
# Nothing is compiled beforehand: most of what comes is never imported.
# torch goes in by itself first, so that the platform's default build is the one everything else is resolved against.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "calrec-lite needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	test -f $(VENV)/made || { $(PYTHON) -m venv --clear $(VENV) && touch $(VENV)/made; }
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
