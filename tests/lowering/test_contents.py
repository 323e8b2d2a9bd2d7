"""`describe` lists what a file holds and keeps its hands off."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from sparsify.lowering import describe
from tests.lowering.graphs import model, node, sparse_array


def test_layers_inputs_and_parameters(tmp_path):
    weight = sparse_array(24, 40)
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Conv", ["h", "k"], "y", group=2),
    ]
    constants = {"w": weight, "k": np.ones((2, 1, 1, 1), np.float32)}
    built = model(nodes, {"x": ("n", 2, 5, 24)}, {"y": ("n", 2, 5, 40)}, constants)
    path = tmp_path / "model.onnx"
    onnx.save(built, path)
    before = path.read_bytes()
    found = describe(path)
    assert path.read_bytes() == before
    assert found["kind"] == "onnx"
    assert found["inputs"] == [{"name": "x", "shape": ["n", 2, 5, 24]}]
    assert found["parameters"] == 24 * 40 + 2
    assert [layer["op"] for layer in found["layers"]] == ["MatMul", "Conv"]
    assert found["layers"][0]["density"] == pytest.approx(np.count_nonzero(weight) / weight.size)
    assert "group = 2" in found["layers"][1]["note"]
