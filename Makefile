# make demo    environment, install, then `qmux demo` until Ctrl-C
# make test    environment, lint and the tests that every change must pass: some minutes (as root on Debian it also
#              installs the programs that the tests run)
# make test-all    the rest: every combination of engines, longer faults; after make test
# make soak    ten minutes of load and connections that come and go, with figures (loadtest/README.md)
# make lint    ruff and mypy
# make native  build the native engine in Rust (needs cargo); demo, test and bench do so where they can
# make native-test   format, lint and tests of the native engine's Rust (needs cargo); make test does it, too
# make bench   loadtest/ with its defaults, beside the systems that it installs or builds
# make clean   remove the environment and every cache

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

PYTHONS := python3.13 python3.12 python3.11 python3
PYTHON ?= $(shell for name in $(PYTHONS); do \
	"$$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; \
	done)

# Test processes side by side: they wait most of the time.
JOBS ?= 4
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test test-all soak lint bench clean tools native try-native native-test
.NOTPARALLEL: # one pip at a time in one environment

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed try-native
	@$(BIN)/python scripts/foreground.py $(BIN)/qmux demo

test: NATIVE_IS := $(if $(CI),required)
test: tools lint try-native native-test
	$(PYTEST) -n $(JOBS) -m "not serial and not extended"
	$(PYTEST) -m "serial and not extended"

test-all: NATIVE_IS := $(if $(CI),required)
test-all: tools $(VENV)/.installed-test try-native
	HYPOTHESIS_PROFILE=deep $(PYTEST) -n $(JOBS) -m "not serial and (extended or hypothesis)"
	$(PYTEST) -m "serial and extended"

soak: $(VENV)/.installed-test try-native
	$(BIN)/python -m loadtest.soak

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed try-native
	$(BIN)/python -m loadtest --prepare
	$(BIN)/python -m loadtest

tools:
	@scripts/test-tools

clean:
	rm -rf $(VENV) native/target native/dist native/fuzz/target build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis loadtest/out loadtest/cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Without a Rust toolchain everything runs on the aioquic engine; a build that fails is a failure for the tests in CI.
try-native: $(VENV)/.made
	@scripts/try-native $(BIN)/python "$(MAKE)" $(NATIVE_IS)

native: $(VENV)/.native

native-test:
	@scripts/native-test $(NATIVE_IS)

# pip replaces the module by a new file: what runs with the old one goes on with it.
$(VENV)/.native: $(shell find native/src -type f) $(wildcard native/*.toml native/*.lock native/*.pyi) | $(VENV)/.made
	@echo "Building the native engine: some minutes the first time."
	@rm -f $@
	@$(PIP) 'maturin>=1.9,<2'
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked --quiet --manifest-path native/Cargo.toml \
		>$(VENV)/native.log 2>&1 || { cat $(VENV)/native.log >&2; exit 1; }
	@touch $@

# The stamps are what makes a second run quick; a changed pyproject.toml installs again. The install is editable: an
# edited module needs none.
$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	$(PIP) --editable '.[test,lint]'
	@touch $(VENV)/.installed $@

$(VENV)/.made:
	@[ -n "$(PYTHON)" ] || { \
		echo "QMux needs Python 3.11 or newer with its venv module; looked for: $(PYTHONS)." >&2; \
		echo "Debian, Ubuntu: apt-get install python3 python3-venv. Fedora: dnf install python3. Or: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
