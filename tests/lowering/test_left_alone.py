"""What cannot be lowered is left as it is, and the report says why."""

from __future__ import annotations

import ml_dtypes
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


@pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)])
def test_other_floats(tmp_path, dtype):
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    built = model(
        [node("MatMul", ["x", "w"], "y")],
        {"x": ("n", 24)},
        {"y": ("n", 40)},
        {"w": W.astype(dtype)},
        types={"x": kind, "y": kind},
    )
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["MatMul"]
    assert f"{dtype.name}; only float32 and float16" in report.layers[0].reason


def test_quantized_weight(tmp_path):
    nodes = [node("DequantizeLinear", ["q", "s"], "w"), node("MatMul", ["x", "w"], "y")]
    constants = {"q": (W > 0).astype(np.int8), "s": np.array(0.1, np.float32)}
    report, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, constants), tmp_path)
    assert operators(result) == ["DequantizeLinear", "MatMul"]
    assert "quantized" in report.layers[0].reason


def test_weight_that_is_quantized_and_back_in_the_graph(tmp_path):
    nodes = [
        node("QuantizeLinear", ["v", "s", "zero"], "q"),
        node("DequantizeLinear", ["q", "s", "zero"], "d"),
        node("Transpose", ["d"], "t", perm=[1, 0]),
        node("QuantizeLinear", ["x", "s", "zero"], "xq"),
        node("DequantizeLinear", ["xq", "s", "zero"], "xd"),
        node("Gemm", ["xd", "t"], "y"),
    ]
    constants = {"v": W.T.copy(), "s": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    report, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, constants), tmp_path)
    assert "Gemm" in operators(result)
    assert "quantized" in report.layers[0].reason


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "weights", "shape", "rank", "reason"),
    [
        ("ConvTranspose", ["x", "w"], {}, [(3, 4, 2, 2)], (1, 3, 5, 5), 4, "transposed convolution"),
        ("Einsum", ["x", "w"], {"equation": "ij,jk->ik"}, [(3, 4)], (2, 3), 2, "general product"),
        ("GRU", ["x", "w", "r"], {"hidden_size": 4}, [(1, 12, 3), (1, 12, 4)], (2, 1, 3), 4, "recurrent"),
    ],
)
def test_operators_without_a_sparse_form(tmp_path, op, inputs, attributes, weights, shape, rank, reason):
    constants = {name: sparse_array(*dims) for name, dims in zip(inputs[1:], weights, strict=True)}
    report, result = lowered(
        model([node(op, inputs, "y", **attributes)], {"x": shape}, {"y": (None,) * rank}, constants), tmp_path
    )
    assert operators(result) == [op]
    assert reason in report.layers[0].reason
    assert report.layers[0].shape == weights[0] or op == "GRU"


def test_integer_operator(tmp_path):
    built = model(
        [node("MatMulInteger", ["x", "w"], "y")],
        {"x": ("n", 24)},
        {"y": ("n", 40)},
        {"w": (W > 0).astype(np.int8)},
        types={"x": TensorProto.INT8, "y": TensorProto.INT32},
    )
    report, _ = lowered(built, tmp_path)
    assert "integer" in report.layers[0].reason


def test_node_inside_a_function(tmp_path):
    function = helper.make_function(
        "local", "Layer", ["a", "b"], ["c"], [node("MatMul", ["a", "b"], "c")], [helper.make_opsetid("", 20)]
    )
    call = helper.make_node("Layer", ["x", "w"], ["h"], domain="local")
    nodes = [call, node("MatMul", ["h", "v"], "y")]
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", 24)}, {"y": ("n", 8)}, {"w": W[:, :8]})
    del built.graph.node[:]
    built.graph.node.extend(nodes)
    built.graph.initializer.extend([numpy_helper.from_array(sparse_array(8, 8), "v")])
    built.functions.append(function)
    built.opset_import.append(helper.make_opsetid("local", 1))
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["Layer", "SparseLinear"]
    assert [layer.decision for layer in report.layers] == ["sparse", "dense"]
    assert "inside the function 'Layer'" in report.layers[1].reason


@pytest.mark.parametrize("op", ["Loop", "Scan"])
def test_node_inside_a_loop(tmp_path, op):
    def info(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    inner = [node("MatMul", ["h", "v"], "next"), node("Identity", ["next"], "kept")]
    outs = [info("next", TensorProto.FLOAT, (3, 24)), info("kept", TensorProto.FLOAT, (3, 24))]
    state = info("h", TensorProto.FLOAT, (3, 24))
    if op == "Loop":
        inner.append(node("Identity", ["go"], "on"))
        given = [info("i", TensorProto.INT64, ()), info("go", TensorProto.BOOL, ()), state]
        outs = [info("on", TensorProto.BOOL, ()), *outs]
        inputs, attributes = ["times", "", "x"], {}
    else:
        given = [state, info("step", TensorProto.FLOAT, (1,))]
        inputs, attributes = ["x", "steps"], {"num_scan_inputs": 1}
    body = helper.make_graph(inner, "body", given, outs)
    loop = helper.make_node(op, inputs, ["last", "all"], name="loop", body=body, **attributes)
    stored = {"v": sparse_array(24, 24), "w": W, "times": np.array(3), "steps": np.zeros((3, 1), np.float32)}
    stored.pop("steps" if op == "Loop" else "times")
    nodes = [loop, node("MatMul", ["last", "w"], "y")]
    report, result = lowered(
        model(nodes, {"x": (3, 24)}, {"y": (3, 40), "all": (None, 3, 24)}, stored), tmp_path
    )
    assert operators(result) == [op, "SparseLinear"]
    assert [layer.decision for layer in report.layers] == ["dense", "sparse"]
    assert f"inside a subgraph of {op} node 'loop'" in report.layers[0].reason


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
