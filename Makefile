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

.PHONY: setup demo test bench docs site links stubs types lint format gates tidy sanitize fuzz wheel oldest clean

setup: $(VENV)/.headkit

$(VENV)/.environment:
	PYTHON=$(PYTHON) scripts/system_packages.sh
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the build tools (about 5 GB, a few minutes)"
	$(PIP) install -q --upgrade 'pip>=23.2'
	$(PIP) install -q 'torch>=2.11' 'scikit-build-core>=1.1' ninja
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(if $(COVERAGE),--cov=headkit --cov-report=)
	$(if $(COVERAGE),$(BIN)/coverage report --format=total | sed 's/.*/Python lines that tests reach: &%/')

bench: setup
	$(BIN)/headkit bench attention

docs: site
	$(BIN)/python -m pytest tests/python/test_docs.py tests/python/test_faq.py

SPHINX := $(BIN)/python -m sphinx -q -d build/site/doctrees

site: $(VENV)/.docs
	$(SPHINX) -W --keep-going -b html docs build/site/html
	@echo "build/site/html/index.html"

# Links to other sites; needs a network.
links: $(VENV)/.docs
	$(SPHINX) -b linkcheck docs build/site/links

$(VENV)/.docs: $(VENV)/.headkit
	ALSO=doxygen PYTHON=$(PYTHON) scripts/system_packages.sh
	$(PIP) install -q 'headkit[docs]'
	@touch $@

stubs: setup
	$(BIN)/python scripts/type_stubs.py python/headkit/_C.pyi

lint: $(VENV)/.dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

types: $(VENV)/.dependencies
	$(BIN)/mypy

format: $(VENV)/.dependencies
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

# What is asked of a change beside lint and tests.
gates: types tidy sanitize site

# What changed since the commit SINCE, default the one before; `make tidy SINCE=` looks at all sources.
tidy: setup
	$(BIN)/python scripts/tidy.py $(BUILD) $(or $(SINCE),$(if $(filter undefined,$(origin SINCE)),HEAD~1))

# The C++ tests that need no torch, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(VENV)/.environment
	cmake --workflow --preset sanitizers

# Each fuzzer for SECONDS, from a seed that it names.
fuzz: setup
	scripts/fuzz.sh $(BUILD) $(or $(SECONDS),60)

# The wheel and the source archive in dist/, and what the wheel asks of the system.
wheel: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python scripts/check_wheel.py dist/*.whl

# The oldest torch: an environment of its own, a build and a smoke test (about 5 GB, half an hour).
oldest: build/oldest/.environment
	$(OLDEST)/pip install -q --no-build-isolation --no-deps -C build-dir=build/oldest/python .
	cd build/oldest && bin/python -m pytest -q $(addprefix $(CURDIR)/tests/python/,$(SMOKE))

OLDEST := build/oldest/bin
SMOKE := test_attention_forward.py test_attention_module.py test_policies.py

build/oldest/.environment: pyproject.toml
	PYTHON=$(PYTHON) scripts/system_packages.sh
	$(PYTHON) -m venv build/oldest
	$(OLDEST)/pip install -q --upgrade 'pip>=23.2'
	$(OLDEST)/pip install -q 'torch==2.11.*' numpy 'typer>=0.12' 'rich>=13' tqdm 'transformers>=5.23,<6' \
	  safetensors 'scikit-build-core>=1.1' ninja 'pytest>=8'
	@touch $@

clean:
	rm -rf build out
