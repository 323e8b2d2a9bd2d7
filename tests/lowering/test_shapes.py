"""Lowered files say type and shape of every value, and pass the full check of onnx."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from sparsify.runtime import Session
from tests.lowering.graphs import lowered, model, node, operators, sparse_array


def shapes(built: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in [*built.graph.value_info, *built.graph.output]
    }


def everything() -> onnx.ModelProto:
    """Linear, two- and one-dimensional convolution, left operand and a transposed input, in a row."""
    nodes = [
        node("Conv", ["image", "k"], "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Neg", ["c"], "c2"),
        node("Reshape", ["c2", "flat"], "f"),
        node("Conv", ["f", "k1"], "d", pads=[1, 1]),
        node("Neg", ["d"], "d2"),
        node("MatMul", ["left", "d2"], "e"),
        node("Neg", ["e"], "e2"),
        node("MatMul", ["e2", "w"], "m"),
        node("Neg", ["m"], "m2"),
        node("ReduceMean", ["m2", "axis"], "r", keepdims=0),
        node("Gemm", ["r", "v", "b"], "y", transA=1),
    ]
    constants = {
        "k": sparse_array(8, 3, 3, 3),
        "flat": np.array([0, 0, -1]),
        "k1": sparse_array(8, 8, 3),
        "left": sparse_array(6, 8),
        "w": sparse_array(36, 10),
        "axis": np.array([0]),
        "v": sparse_array(6, 4),
        "b": sparse_array(10, 4, density=1),
    }
    return model(nodes, {"image": ("n", 3, 12, 12)}, {"y": (10, 4)}, constants)


def test_every_value_has_a_shape_with_a_dynamic_batch(tmp_path):
    report, result = lowered(everything(), tmp_path)
    assert report.nodes.sparse == 5
    found = shapes(result)
    made = [name for item in result.graph.node for name in item.output]
    assert set(made) == set(found)
    assert found["c2"] == ["n", 8, 6, 6]
    assert found["d2"] == ["n", 8, 36]
    assert found["e/sparse"] == ["n", 6, 1, 36]
    assert found["r/transpose"] == [10, 6]
    onnx.checker.check_model(result, full_check=True)


def test_what_is_written_is_what_comes_out(tmp_path):
    built = everything()
    _, result = lowered(built, tmp_path)
    infos = list(result.graph.value_info)
    result.graph.output.extend(infos)
    del result.graph.value_info[:]
    values = Session(result.SerializeToString()).run({"image": np.ones((2, 3, 12, 12), np.float32)})
    found = shapes(result)
    assert len(infos) > 10
    for info in infos:
        value = values[info.name]
        assert onnx.helper.np_dtype_to_tensor_dtype(value.dtype) == info.type.tensor_type.elem_type
        assert list(value.shape) == [2 if dim == "n" else dim for dim in found[info.name]]


@pytest.mark.parametrize("size", [("n", 24, "m"), ("n", "m", 24), (None, None, 24)])
def test_unknown_sizes_stay_unknown_and_ranks_are_said(tmp_path, size):
    nodes = [node("MatMul", ["w", "x"] if size[1] == 24 else ["x", "w"], "h"), node("Neg", ["h"], "y")]
    weight = sparse_array(40, 24) if size[1] == 24 else sparse_array(24, 40)
    out = tuple(40 if dim == 24 else dim for dim in size)
    _, result = lowered(model(nodes, {"x": size}, {"y": out}, {"w": weight}), tmp_path)
    found = shapes(result)
    assert len(found["h"]) == 3
    assert all(name in found for item in result.graph.node for name in item.output)
    onnx.checker.check_model(result, full_check=True)


def test_output_without_a_shape_gets_one(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "y")]
    built = model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": sparse_array(24, 40)})
    built.graph.output[0].type.tensor_type.ClearField("shape")
    _, result = lowered(built, tmp_path)
    assert shapes(result)["y"] == ["n", 40]


def test_what_a_file_says_of_values_that_are_gone_is_dropped(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("Neg", ["r"], "y")]
    built = model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": sparse_array(24, 40)})
    built = onnx.shape_inference.infer_shapes(built)
    assert "h" in shapes(built)
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear", "Neg"]
    assert set(shapes(result)) == {"r", "y"}
