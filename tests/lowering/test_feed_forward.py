"""Two sparse linear layers become one node where nothing else reads what lies between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsify
from sparsify.errors import SparsifyError
from sparsify.runtime import Session
from sparsify.runtime.feed_forward import OPERATOR
from sparsify.runtime.model_bench import bench
from sparsify.runtime.zero_filled import zero_filled

IN, HIDDEN, OUT = 96, 200, 96


def weight(name: str, rows: int, columns: int, seed: int) -> onnx.TensorProto:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((rows, columns)).astype(np.float32)
    values[generator.random((rows, columns)) < 0.9] = 0.0
    return numpy_helper.from_array(values * 0.3, name)


def bias(name: str, size: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.linspace(-1, 1, size, dtype=np.float32), name)


def mlp(*, residual: bool = True, hidden_output: bool = False, biased: bool = True) -> onnx.ModelProto:
    """X → W1 → Relu → W2, plus X or not; what lies between may be an output, too."""
    tensors = [weight("w1", IN, HIDDEN, 1), weight("w2", HIDDEN, OUT, 2)]
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["a"], name="up")]
    value = "a"
    if biased:
        tensors += [bias("b1", HIDDEN), bias("b2", OUT)]
        nodes.append(helper.make_node("Add", ["a", "b1"], ["ab"]))
        value = "ab"
    nodes.append(helper.make_node("Relu", [value], ["h"]))
    nodes.append(helper.make_node("MatMul", ["h", "w2"], ["c"], name="down"))
    value = "c"
    if biased:
        nodes.append(helper.make_node("Add", ["c", "b2"], ["cb"]))
        value = "cb"
    if residual:
        nodes.append(helper.make_node("Add", [value, "x"], ["sum"]))
        value = "sum"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    outputs = ["y", "h"] if hidden_output else ["y"]
    widths = {"y": OUT, "h": HIDDEN}
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 5, IN])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 5, widths[name]])
            for name in outputs
        ],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def lowered(model: onnx.ModelProto, folder: Path) -> tuple[Path, sparsify.LowerReport]:
    source, target = folder / "dense.onnx", folder / "sparse.onnx"
    onnx.save(model, source)
    return target, sparsify.lower(source, target, layout="csr")


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_pair_computes_what_the_source_does(tmp_path: Path, residual: bool, biased: bool, rows: int) -> None:
    model = mlp(residual=residual, biased=biased)
    path, report = lowered(model, tmp_path)
    assert OPERATOR in kinds(path) and "SparseLinear" not in kinds(path)
    assert {layer.chain for layer in report.layers} == {"up..down"}
    x = np.random.default_rng(0).standard_normal((rows, 5, IN)).astype(np.float32)
    expected = Session(tmp_path / "dense.onnx").run({"x": x})["y"]
    np.testing.assert_allclose(Session(path, threads=2).run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_pair_passes_the_checker_and_comes_apart(tmp_path: Path) -> None:
    path, _ = lowered(mlp(), tmp_path)
    onnx.checker.check_model(path, full_check=True)
    twin = zero_filled(onnx.load(path))
    assert {node.domain for node in twin.graph.node} == {""}
    onnx.save(twin, tmp_path / "twin.onnx")
    x = np.random.default_rng(1).standard_normal((3, 5, IN)).astype(np.float32)
    expected = Session(path).run({"x": x})["y"]
    np.testing.assert_allclose(
        Session(tmp_path / "twin.onnx").run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4
    )


def test_hidden_units_that_are_an_output_keep_the_layers_apart(tmp_path: Path) -> None:
    path, report = lowered(mlp(hidden_output=True), tmp_path)
    assert kinds(path).count("SparseLinear") == 2 and OPERATOR not in kinds(path)
    assert {layer.chain for layer in report.layers} == {None}


def test_profile_counts_both_products(tmp_path: Path) -> None:
    path, _ = lowered(mlp(), tmp_path)
    rows = bench(path, batches=(8,), duration=0.05, warmup=1, profile=True)["profile"]
    (row,) = [row for row in rows if row["op"] == OPERATOR]
    assert row["decision"] == "csr" and row["gflops"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_features": HIDDEN + 1}, "hidden_bias must be"),
        ({"in_features": IN - 1}, "the node says 200 x 95"),
        ({"hidden_layout": "blocks-3"}, "blocks-3"),
        ({"hidden_activation": "swish"}, "unknown activation"),
        ({"bias": 0}, "inputs"),
    ],
)
def test_bad_attributes_name_the_node(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path, _ = lowered(mlp(), tmp_path)
    model = onnx.load(path)
    (node,) = [node for node in model.graph.node if node.op_type == OPERATOR]
    kept = [item for item in node.attribute if item.name not in change]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in change.items())])
    onnx.save(model, path)
    with pytest.raises(SparsifyError, match=message) as error:
        Session(path)
    assert "up..down" in str(error.value)
