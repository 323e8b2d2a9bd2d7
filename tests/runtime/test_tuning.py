"""What kernels are tuned for changes how they cut their work, never what they compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library
from sparsify.runtime.layouts import pack_conv, pack_linear
from tests.runtime.native import Kernel, supported_kernels
from tests.runtime.test_kernels import check, normal
from tests.runtime.test_layouts import blocks, sparse

CACHES = {"skylake": [32 << 10, 1 << 20], "sapphirerapids": [48 << 10, 2 << 20]}


def check_all() -> None:
    """Products of several tiles, panels and cuts, by the best kernels of this CPU."""
    kernel = supported_kernels()[-1]
    for density in (0.1, 0.3):
        check(kernel, pack_linear(sparse((300, 900), density)), normal((70, 900)), threads=2)
        for rows in (2, 4, 16):
            weight = blocks((304, 900), density, rows)
            check(kernel, pack_linear(weight, layout=f"blocks-{rows}"), normal((70, 900)), threads=2)
            weight = blocks((64, 40 * 9), density, rows).reshape(64, 40, 3, 3)
            packed = pack_conv(weight, layout=f"blocks-{rows}", pads=(1, 1, 1, 1))
            check(kernel, packed, normal((2, 40, 14, 14)), threads=2)
    # Sums of more outputs than may wait at once in either cache.
    check(kernel, pack_linear(sparse((6500, 64), 0.1)), normal((64, 64)), ends=False)


@pytest.mark.parametrize("name", CACHES)
def test_products_are_right_for_every_tuning(name: str) -> None:
    code = (
        "import json; from sparsify.runtime import library; from tests.runtime import test_tuning as tests; "
        "tests.check_all(); print(json.dumps([library.tuning(), library.tuned_deep(), "
        "[library.tuned_cache(1), library.tuned_cache(2)]]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"SPARSIFY_TUNE_FOR": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [name, name == "sapphirerapids", CACHES[name]]


def test_caches_of_this_cpu_are_taken_within_what_was_measured() -> None:
    for level in (1, 2):
        least, most = (CACHES[name][level - 1] for name in CACHES)
        assert least <= library.tuned_cache(level) <= most


def test_an_unknown_tuning_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    library.tuning()
    monkeypatch.setenv("SPARSIFY_TUNE_FOR", "abacus")
    with pytest.raises(RuntimeLibraryError, match="'abacus'; there are skylake and sapphirerapids"):
        Kernel(pack_linear(np.eye(4, dtype=np.float32)))
