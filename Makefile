# make demo    trains the VDM preset on the embedded digits and shows what it learnt
# make test    runs the test suite
# make check   everything: lint, types, import contract, tests and slow tests, laws of every part, docs
# Only Python 3.11 or newer and make are needed; everything else is set up in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)
EDITABLE := $(foreach plugin,$(PLUGINS),-e ./$(plugin))
LAWFUL := diffkit $(notdir $(PLUGINS))
INPUTS := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)

.PHONY: demo test slow check lint types contract laws docs format clean

# What running needs, and, apart from it, what developing needs: the demo waits for the first only.
$(VENV)/run.stamp: $(INPUTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diffkit needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]' $(EDITABLE)
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' $(EDITABLE)
	touch $@

demo: $(VENV)/run.stamp
	$(BIN)/diffkit train preset=vdm data=digits run=runs/demo

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow"

# What takes longer: every pair of parts, a run that is killed, a stranger's plugin in a fresh environment.
slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/basedpyright

contract: $(VENV)/dev.stamp
	$(BIN)/lint-imports

laws: $(VENV)/dev.stamp
	$(BIN)/diffkit check $(LAWFUL)

docs: $(VENV)/dev.stamp
	$(BIN)/mkdocs build --strict --quiet

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types contract test slow laws docs

clean:
	rm -rf $(VENV) runs site
