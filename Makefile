# Two commands: `make demo` and `make test`. TORCH names another torch: make demo TORCH=torch==2.14.1
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One cmake for both builds: where another comes first on the path, the second would compile everything again.
TOOLS := PATH="$(CURDIR)/$(BIN):$$PATH"
TAMIS_TESTING ?= ON
BUILDING := TAMIS_TESTING=$(TAMIS_TESTING) TAMIS_BUILD_DIR=$(CURDIR)/$(VENV)/cmake $(TOOLS)
# Python is compiled where it is first imported: pip would compile all of torch, and without it every import takes seconds.
PIP := python -m pip install -q --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bench aot sanitize mutate gpu-test docs wheel-test clean build
demo: build
	$(BIN)/tamis demo

test: build
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.cuh' '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

bench: build
	$(BIN)/tamis bench

aot: build
	$(BIN)/tamis aot

sanitize: $(VENV)/installed
	PYTHON=$(BIN)/python tests/sanitize/run.sh

# Changes each place of the CUDA sources, then of the CPU kernels' tails, and expects a test to fail.
mutate: $(VENV)/installed
	cd tests && $(abspath $(BIN))/python -m cuda_emulator.mutate
	cd tests && $(abspath $(BIN))/python -m mutation.cpu

# Needs an NVIDIA GPU, its driver and a torch built for CUDA (TORCH, where the index's default is another); nvcc and
# compute-sanitizer are used where they are. Ten minutes beyond setting up; writes benchmarks/results/<device>.json and .md.
# DRY_RUN=1 lists what would run. In an environment of one's own: python tests/gpu/run.py
gpu-test:
ifdef DRY_RUN
	$(PYTHON) tests/gpu/run.py --dry-run
else
	$(PYTHON) tests/gpu/run.py --find
	TAMIS_CUDA=off $(MAKE) $(VENV)/installed
	$(BUILDING) $(BIN)/python tests/gpu/run.py
endif

docs: build
	$(BIN)/python -m tamis.docs docs/ops.md

# An sdist, a wheel from it, and that wheel in a new environment with another torch. Slow; not part of `test`.
WHEEL_TORCH ?= torch==2.14.1
wheel-test: $(VENV)/installed
	rm -rf build/wheel && mkdir -p build/wheel
	TAMIS_TESTING=OFF $(BIN)/python -m build --sdist --no-isolation --outdir build/wheel .
	TAMIS_TESTING=OFF $(TOOLS) python -m pip wheel --no-build-isolation --no-deps -w build/wheel build/wheel/tamis-*.tar.gz
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/$(PIP) '$(WHEEL_TORCH)'
	build/wheel/venv/bin/$(PIP) build/wheel/tamis-*.whl
	cd build/wheel && venv/bin/python $(CURDIR)/tests/smoke.py && venv/bin/tamis doctor

# The environment's torch. Where another is wanted it goes into the same environment, and all is built again.
ifneq "$(TORCH)" "$(shell cat $(VENV)/torch 2>/dev/null)"
.PHONY: $(VENV)/torch
endif
$(VENV)/torch:
	mkdir -p $(VENV)
	rm -rf $(VENV)/cmake
	echo '$(TORCH)' > $@

# Every environment is made once; the libraries are built again where a source changed (ninja decides). At first they
# are compiled while pip fetches and unpacks the rest; its own build waits for that one, and finds all made.
$(VENV)/installed: pyproject.toml $(VENV)/torch
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) '$(TORCH)' 'setuptools>=77' cmake ninja pybind11 simde-py
	$(BUILDING) $(BIN)/python setup.py -q build_ext --inplace & building=$$!; \
	$(BUILDING) $(BIN)/$(PIP) --no-build-isolation -e '.[dev]' && wait $$building
	touch $@

build: $(VENV)/installed
	$(BUILDING) $(BIN)/python setup.py -q build_ext --inplace

clean:
	rm -rf $(VENV) build dist *.egg-info pysrc/*.egg-info pysrc/tamis/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
