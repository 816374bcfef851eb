# make demo    trains the VDM preset on the embedded digits and shows what it learnt
# make test    runs the test suite
# make check   everything: lint, types, import contract, tests and slow tests, versions, laws of every part, docs
# make versions  the tests with the oldest JAX and the rest, and with the newest Python at hand and its newest JAX
# Only Python 3.11 or newer and make are needed; everything else is set up in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)
EDITABLE := $(foreach plugin,$(PLUGINS),-e ./$(plugin))
LAWFUL := diffkit $(notdir $(PLUGINS))
INPUTS := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)

.PHONY: demo test slow versions check lint types contract laws docs format clean

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

# The oldest versions that pyproject.toml allows, and the newest with the newest Python at hand. Each runs the
# tests that take least, up to 0.2 of the time of `make test`: most of them.
NEWEST := $(shell .ci/newest-python)
VERSIONS := $(VENV)-oldest $(if $(NEWEST),$(VENV)-newest)

$(VENV)-oldest/dev.stamp: BASE = $(PYTHON)
$(VENV)-newest/dev.stamp: BASE = $(NEWEST)
$(VENV)-%/dev.stamp: constraints-%.txt $(INPUTS)
	$(BASE) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $< -e '.[train]' $(EDITABLE)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $< -e '.[sweeps,test,docs]' $(EDITABLE)
	touch $@

versions: $(VERSIONS:=/dev.stamp)
	$(if $(NEWEST),,@echo "no Python newer than 3.11 at hand: the newest versions are not tested")
	$(foreach env,$(VERSIONS),$(env)/bin/python -m pytest -n 2 -m "not slow" --share 0.2 &&) true

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

check: lint types contract test slow versions laws docs

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest runs site
