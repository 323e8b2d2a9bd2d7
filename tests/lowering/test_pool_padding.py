"""Dense convolutions that are pooled for sparse ones get channels enough for whole blocks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sparsify.lowering import lower, pool_padding, rewrite
from sparsify.lowering.candidate import Candidate
from sparsify.lowering.cost import Decision
from sparsify.lowering.decisions import choose
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from sparsify.lowering.pool_padding import find_padded_pools
from sparsify.runtime import Session
from tests.lowering.graphs import model, node, operators, sparse_array


@pytest.fixture(autouse=True)
def sixteen(monkeypatch):
    monkeypatch.setattr(rewrite, "block_of_channels", lambda: 16)


def stem_model(channels=20, inputs=3, between=("Relu",), pool="MaxPool", group=1, **more):
    """Convolution, channel-wise operators, pooling, and a sparse convolution that adds the pooled map."""
    generator = np.random.default_rng(5)
    constants = {
        "w": generator.standard_normal((channels, inputs // group, 3, 3)).astype(np.float32),
        "b": generator.standard_normal(channels).astype(np.float32),
        "w2": sparse_array(channels, channels, 3, 3),
        **{name: np.full(channels, value, np.float32) for name, value in (("s", 2), ("h", 3), ("v", 0.5))},
    }
    nodes = [node("Conv", ["x", "w", "b"], "c", pads=[1, 1, 1, 1], group=group)]
    for i, op in enumerate(between):
        extra = ["s", "h", "h", "v"] if op == "BatchNormalization" else []
        nodes.append(node(op, [nodes[-1].output[0], *extra], f"m{i}"))
    nodes.append(node(pool, [nodes[-1].output[0]], "p", kernel_shape=[2, 2], strides=[2, 2]))
    nodes.append(node("Conv", ["p", "w2"], "y0", pads=[1, 1, 1, 1]))
    nodes.append(node("Add", ["y0", "p"], "y"))
    outputs = {"y": ("n", channels, 4, 5), **more}
    return model(nodes, {"x": ("n", inputs, 8, 10)}, outputs, constants)


def lowered(built, folder):
    """The second convolution sparse, and the outputs compared."""
    graph = Graph(built)
    matches = match_all(graph)
    sparse = {
        match.index: Decision("csr" if match.node == "y0_Conv" else None, "")
        for match in matches
        if isinstance(match, Candidate)
    }
    result = rewrite.rewrite(graph, choose(graph, matches, sparse), rewrite.Packer())
    x = {"x": np.random.default_rng(6).standard_normal((2, *_sides(built)), dtype=np.float32)}
    outputs = []
    for name, file in (("source", built), ("lowered", result)):
        onnx.save(file, folder / f"{name}.onnx")
        outputs.append(Session(folder / f"{name}.onnx").run(x)["y"])
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)
    return result


def _sides(built):
    return [dim.dim_value for dim in built.graph.input[0].type.tensor_type.shape.dim[1:]]


@pytest.mark.parametrize("between", [(), ("Relu",), ("BatchNormalization", "Relu"), ("Sigmoid",)])
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_channels_are_padded_and_cut_behind_the_pooling(tmp_path, between, pool):
    result = lowered(stem_model(between=between, pool=pool), tmp_path)
    assert operators(result) == ["Conv", *between, pool, "Slice", "SparseConv"]
    onnx.checker.check_model(result, full_check=True)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    weight, bias = (tensors[name] for name in result.graph.node[0].input[1:])
    assert weight.shape == (32, 3, 3, 3) and bias.shape == (32,)
    assert not weight[20:].any() and not bias[20:].any() and weight[:20].all()
    assert "w" not in tensors and "b" not in tensors


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 32},
        {"between": ("Softmax",)},
        {"channels": 18, "inputs": 18},
        {"channels": 20, "inputs": 20, "group": 20},
        {"c": ("n", 20, 8, 10)},
    ],
    ids=["whole blocks", "across channels", "inputs in no blocks", "depthwise", "read outside"],
)
def test_others_stay_as_they_are(tmp_path, options):
    result = lowered(stem_model(**options), tmp_path)
    assert "Slice" not in operators(result) and "SparseConv" in operators(result)


def test_what_only_made_the_weight_goes_with_it(tmp_path):
    built = stem_model()
    built.graph.node[0].input[1] = "kept"
    built.graph.node.insert(0, node("Identity", ["w"], "kept"))
    result = lowered(built, tmp_path)
    assert operators(result) == ["Conv", "Relu", "MaxPool", "Slice", "SparseConv"]
    assert "w" not in {tensor.name for tensor in result.graph.initializer}


def test_a_pooling_that_nothing_sparse_reads_stays(tmp_path):
    graph = Graph(stem_model())
    assert find_padded_pools(graph, {}, 16) == ()


def test_a_cpu_without_blocks_pads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite, "block_of_channels", lambda: 1)
    result = lowered(stem_model(), tmp_path)
    assert operators(result) == ["Conv", "Relu", "MaxPool", "SparseConv"]


@pytest.mark.parametrize(
    ("able", "block"),
    [({"avx512": True, "avx2": True}, 16), ({"avx512": False, "avx2": True}, 8), ({"neon": True}, 1)],
)
def test_the_block_is_that_of_the_cpu(monkeypatch, able, block):
    monkeypatch.setattr(pool_padding, "kernels", lambda: {"scalar": True, **able})
    assert pool_padding.block_of_channels() == block


def test_the_report_says_so(tmp_path):
    """A file in which the estimate leaves the stem dense and takes the rest."""
    built = stem_model(channels=100)
    onnx.save(built, tmp_path / "source.onnx")
    report = lower(tmp_path / "source.onnx", tmp_path / "lowered.onnx", batches=[64])
    stem, sparse = report.layers
    assert sparse.decision == "sparse", sparse.reason
    assert stem.decision == "dense" and stem.reason.endswith(
        "computed with 112 channels, so that ONNX Runtime pools whole blocks"
    )
