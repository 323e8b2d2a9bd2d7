"""What cannot be lowered is left as it is, and the report says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import UserError
from tests.lowering.graphs import lowered, model, node, operators, sparse_array

W = sparse_array(24, 40)


def test_initializer_that_is_an_input_too(tmp_path):
    info = helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape)
    built = model(
        [node("MatMul", ["x", "w"], "y")], {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": W}, extra_inputs=[info]
    )
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["MatMul"]
    assert "graph input" in report.layers[0].reason


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats(tmp_path, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    built = model(
        [node("MatMul", ["x", "w"], "y")],
        {"x": ("n", 24)},
        {"y": ("n", 40)},
        {"w": W.astype(dtype)},
        types={"x": kind, "y": kind},
    )
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["MatMul"]
    assert np.dtype(dtype).name in report.layers[0].reason


def test_quantized_weight(tmp_path):
    nodes = [node("DequantizeLinear", ["q", "s"], "w"), node("MatMul", ["x", "w"], "y")]
    constants = {"q": (W > 0).astype(np.int8), "s": np.array(0.1, np.float32)}
    report, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, constants), tmp_path)
    assert operators(result) == ["DequantizeLinear", "MatMul"]
    assert "quantized" in report.layers[0].reason


def test_node_in_a_subgraph_and_what_it_captures(tmp_path):
    branches = {}
    for branch, sign in (("then_branch", "Neg"), ("else_branch", "Abs")):
        out = helper.make_tensor_value_info(f"{branch}_y", TensorProto.FLOAT, None)
        inner = [node("MatMul", ["h", "v"], f"{branch}_h"), node(sign, [f"{branch}_h"], f"{branch}_y")]
        branches[branch] = helper.make_graph(inner, branch, [], [out])
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Relu", ["h"], "z"),
        node("If", ["flag"], "u", **branches),
        node("MatMul", ["z", "v"], "t"),
        node("Add", ["t", "u"], "y"),
    ]
    built = model(
        nodes,
        {"x": ("n", 24), "flag": ()},
        {"y": (None, 40)},
        {"w": W, "v": sparse_array(40, 40)},
        types={"flag": TensorProto.BOOL},
    )
    report, result = lowered(built, tmp_path)
    assert [layer.decision for layer in report.layers] == ["sparse", "dense", "dense", "sparse"]
    assert "subgraph" in report.layers[1].reason
    assert operators(result)[:2] == ["SparseLinear", "Relu"]  # the branches read h, so Relu stays
    assert "v" in [item.name for item in result.graph.initializer]


def test_sparse_nodes_stay_and_count_as_sparse(tmp_path):
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": W})
    _, once = lowered(built, tmp_path)
    report, twice = lowered(once, tmp_path)
    assert operators(twice) == ["SparseLinear"]
    assert (report.nodes.sparse, report.nodes.dense) == (1, 0)


def test_dense_weight_stays_dense_unless_forced(tmp_path):
    full = sparse_array(256, 256, density=1.0)
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (8, 256)}, {"y": (8, 256)}, {"w": full})
    report, result = lowered(built, tmp_path, layout=None)
    assert operators(result) == ["MatMul"]
    assert report.layers[0].layout is None
    assert lowered(built, tmp_path, layout="csr")[0].nodes.sparse == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_an_error_that_names_it(tmp_path, bad):
    broken = W.copy()
    broken[3, 5] = bad
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": broken})
    with pytest.raises(UserError, match=r"'w'.*NaN or infinity"):
        lowered(built, tmp_path)


def test_sparse_initializer_is_a_weight_too(tmp_path):
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": W})
    del built.graph.initializer[:]
    flat = np.flatnonzero(W)
    values = numpy_helper.from_array(W.reshape(-1)[flat], "w")
    indices = numpy_helper.from_array(flat.astype(np.int64), "w_indices")
    built.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, W.shape))
    report, result = lowered(built, tmp_path)
    assert report.nodes.sparse == 1
    assert not result.graph.sparse_initializer
    assert isinstance(result, onnx.ModelProto)
