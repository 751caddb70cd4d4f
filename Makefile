# Two commands need nothing installed but Python >= 3.10: `make demo` and `make test`. Both share one set-up step.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test setup lint clean

demo: $(READY)
	$(BIN)/calrec-lite demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

setup: $(READY)

# The stamp is written last: a set-up that was interrupted is done again from where pip finds it.
# torch goes in by itself first, so that the platform's default build is the one everything else is resolved against.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "calrec-lite needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	test -f $(VENV)/made || { $(PYTHON) -m venv --clear $(VENV) && touch $(VENV)/made; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
