# From a fresh clone: `make demo` and `make test` do everything, each alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build/python
CXX_SOURCES := $(shell git ls-files -co --exclude-standard -- CMakeLists.txt cmake include src python/bindings tests/cpp tests/support benchmarks 2>/dev/null)
CXX_FILES := $(filter %.h %.cpp,$(shell git ls-files -co --exclude-standard -- include src python/bindings tests examples benchmarks 2>/dev/null))
PIP := $(BIN)/pip --disable-pip-version-check
INSTALL := $(PIP) install -q --no-build-isolation -C build-dir=$(BUILD) \
  -C cmake.define.HEADKIT_BUILD_TESTS=ON -C cmake.define.HEADKIT_BUILD_BENCHMARKS=ON \
  -C cmake.define.HEADKIT_FETCH_DEPENDENCIES=OFF

.PHONY: setup demo test bench docs lint format clean

setup: $(VENV)/.headkit

$(VENV)/.environment:
	PYTHON=$(PYTHON) scripts/system_packages.sh
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the build tools (about 5 GB, a few minutes)"
	$(PIP) install -q --upgrade 'pip>=23.2'
	$(PIP) install -q 'torch>=2.11' 'scikit-build-core>=0.10' ninja
	@touch $@

$(VENV)/.dependencies: $(VENV)/.environment pyproject.toml
	@echo "building headkit and installing it with its dependencies (a few minutes)"
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.headkit

$(VENV)/.headkit: $(VENV)/.dependencies $(CXX_SOURCES)
	@[ ! $(VENV)/.dependencies -nt $@ ] && [ -e $@ ] && echo "rebuilding headkit" || true
	$(INSTALL) --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/headkit demo

test: setup
	ctest --test-dir $(BUILD) --output-on-failure
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

bench: setup
	$(BIN)/headkit bench attention

docs: setup
	$(BIN)/python -m pytest tests/python/test_docs.py

lint: $(VENV)/.dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.dependencies
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build out
