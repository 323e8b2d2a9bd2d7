"""Sparse weights in 16 bits: half the bytes, results within the rounding of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsify.errors import UserError
from sparsify.lowering import lower
from sparsify.runtime import Session
from tests.lowering.graphs import model, node, sparse_array


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    weight = sparse_array(256, 192)
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", 256)}, {"y": ("n", 192)}, {"w": weight})
    onnx.save(built, tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


@pytest.mark.parametrize(("dtype", "ulp"), [("bfloat16", 2**-8), ("float16", 2**-11)])
@pytest.mark.parametrize("layout", ["csr", "blocks-4"])
def test_weights_are_rounded_and_take_half_the_bytes(
    dense: Path, tmp_path: Path, dtype: str, ulp: float, layout: str
):
    whole = lower(dense, tmp_path / "whole.onnx", layout=layout)
    half = lower(dense, tmp_path / "half.onnx", layout=layout, weight_dtype=dtype)
    assert half.nodes.sparse == 1
    assert half.bytes < 0.75 * whole.bytes
    x = np.random.default_rng(0).standard_normal((7, 256)).astype(np.float32)
    expected = Session(dense).run({"x": x})["y"]
    error = np.abs(Session(tmp_path / "half.onnx").run({"x": x})["y"] - expected)
    bound = ulp * (np.abs(x) @ np.abs(onnx.numpy_helper.to_array(onnx.load(dense).graph.initializer[0])))
    assert (error <= bound + 1e-4).all()
    assert error.max() > 1e-5


def test_unknown_types_are_refused_before_anything_is_written(dense: Path, tmp_path: Path):
    with pytest.raises(UserError, match="bfloat16"):
        lower(dense, tmp_path / "out.onnx", weight_dtype="int4")
    assert not (tmp_path / "out.onnx").exists()
