"""Attention beside sparse projections becomes one node in any spelling; what differs stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sparsify.lowering import attention_fusion, lower
from sparsify.lowering.attention_masks import spread
from sparsify.lowering.attention_shapes import sizes_in
from sparsify.lowering.candidate import Candidate
from sparsify.lowering.cost import Machine
from sparsify.lowering.decisions import estimate_all
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from sparsify.runtime import Session
from sparsify.runtime.zero_filled import zero_filled
from tests.lowering.attention_graphs import PLAIN, Spelling, changed, half, with_outputs
from tests.lowering.graphs import attributes, lowered, model, node, operators, sparse_array

ONE_NODE = ["SparseLinear"] * 3 + ["Attention", "SparseLinear"]
SPELLINGS = [
    PLAIN,
    Spelling(scale="divided"),
    Spelling(scale="both", guard=True, keys="flat"),
    Spelling(scale="query", keys="one"),
    Spelling(scale="none", heads=3, size=5),
    Spelling(length="length"),
    Spelling(length="length", sizes_in_graph=True, keys="flat", guard=True, scale="both"),
    Spelling(sizes_in_graph=True),
    Spelling(mask="zeros"),
    Spelling(mask="expanded", guard=True),
    Spelling(opset=11),
    Spelling(mask="causal"),
    Spelling(mask="lowest"),
    Spelling(mask="where"),
    Spelling(mask="where_not"),
    Spelling(mask="trilu", scale="sizes"),
    Spelling(scale="sizes", length="length", sizes_in_graph=True),
    Spelling(mask="given"),
    Spelling(mask="constant"),
]


def fused(built: onnx.ModelProto) -> dict[str, Any]:
    (found,) = [item for item in built.graph.node if item.op_type == "Attention"]
    return attributes(found) | {"inputs": list(found.input)}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=str)
def test_every_spelling_becomes_one_node_and_nothing_else_is_left(spelling, tmp_path):
    report, built = lowered(spelling.build(), tmp_path)
    assert operators(built) == ONE_NODE
    found = fused(built)
    assert found["num_heads"] == found["kv_num_heads"] == spelling.heads
    assert found["scale"] == pytest.approx(spelling.number, rel=1e-6)
    assert found["nan_guard"] == spelling.guard
    assert found["causal"] == (spelling.mask in ("causal", "lowest", "where", "where_not", "trilu"))
    assert found["inputs"] == ["q", "k", "v"] + (["mask"] if spelling.mask in ("given", "constant") else [])
    assert [(entry.fused, entry.heads) for entry in report.attention] == [(True, spelling.heads)]


def test_the_mask_that_is_computed_stays_with_the_nodes_that_make_it(tmp_path):
    spelling = replace(PLAIN, mask="given")
    built = spelling.build()
    nodes = list(built.graph.node)
    del built.graph.node[:]
    built.graph.node.extend([*nodes[:-8], node("Neg", ["mask"], "other_mask"), *nodes[-8:]])
    for item in built.graph.node:
        item.input[:] = [
            "other_mask" if name == "mask" and item.op_type == "Add" else name for name in item.input
        ]
    _, result = lowered(built, tmp_path)
    assert sorted(operators(result)) == sorted([*ONE_NODE, "Neg"])
    assert fused(result)["inputs"][3] == "other_mask"


@pytest.mark.parametrize("inner", ["product", "scaled", "p", "masked"])
def test_scores_and_probabilities_that_are_outputs_are_left_alone(inner, tmp_path):
    spelling = replace(PLAIN, mask="given")
    report, built = lowered(with_outputs(spelling, inner), tmp_path)
    assert "Softmax" in operators(built) and "Attention" not in operators(built)
    assert not any(entry.fused for entry in report.attention)


def test_keys_that_are_an_output_stay_one(tmp_path):
    _, built = lowered(with_outputs(PLAIN, "k4"), tmp_path)
    assert "Attention" in operators(built) and "Softmax" not in operators(built)
    assert operators(built).count("Transpose") == 1


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("p", {"axis": 2}, "axis 2"),
        ("turned", {"perm": [0, 2, 3, 1]}, "joined"),
    ],
)
def test_another_axis_or_order_is_left_alone_with_the_reason(name, change, words, tmp_path):
    spelling = replace(PLAIN, length=8) if name == "turned" else PLAIN
    report, built = lowered(changed(spelling.build(), name, **change), tmp_path)
    assert "Attention" not in operators(built)
    assert words in report.attention[0].reason


def test_a_mask_that_would_enlarge_the_scores_is_left_alone(tmp_path):
    spelling = replace(PLAIN, mask="zeros", constants={"mask": np.zeros((2, 1, 1, 12), np.float32)})
    source, target = tmp_path / "source.onnx", tmp_path / "lowered.onnx"
    onnx.save(spelling.build(), source)
    x = np.ones((2, 12, 16), np.float32)
    report = lower(source, target, layout="csr", inputs={"x": x})
    assert not report.attention[0].fused
    assert "mask" in report.attention[0].reason


def test_half_precision_is_left_alone(tmp_path):
    report, built = lowered(half(PLAIN), tmp_path)
    assert "Attention" not in operators(built)
    assert "float32" in report.attention[0].reason


def test_a_file_without_sparse_projections_stays_the_source(tmp_path):
    report, built = lowered(PLAIN.build(), tmp_path, layout="dense")
    assert operators(built) == operators(PLAIN.build())
    assert "none of the projections" in report.attention[0].reason
    assert report.to_dict()["attention"] == [
        {"node": "p_Softmax", "heads": 2, "fused": False, "reason": report.attention[0].reason}
    ]


def test_one_sparse_layer_elsewhere_is_not_enough(tmp_path):
    built = PLAIN.build()
    generator = np.random.default_rng(0)
    for tensor in built.graph.initializer:
        if tensor.name in ("wq", "wk", "wv", "wo"):
            value = generator.standard_normal((16, 16)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    built.graph.initializer.append(numpy_helper.from_array(sparse_array(16, 512, density=0.02), "more"))
    built.graph.initializer.append(numpy_helper.from_array(sparse_array(512, 512, density=0.02), "most"))
    last = built.graph.node[-1]
    last.name, last.output[0] = "last", "inner"
    built.graph.node.extend(
        [node("MatMul", ["inner", "more"], "wide"), node("MatMul", ["wide", "most"], "y")]
    )
    built.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 512
    report, result = lowered(built, tmp_path, layout=None)
    assert "SparseLinear" in operators(result)
    assert "Attention" not in operators(result)
    assert "none of the projections" in report.attention[0].reason


def test_projections_that_gain_little_become_sparse_for_the_attention_between_them(monkeypatch):
    shape = (384, 384)
    weights = {f"w{i}": sparse_array(*shape, seed=ord(i), density=0.5) for i in "qkvo"}
    graph = Graph(Spelling(heads=6, size=64, length=128, constants=weights).build())
    candidates = [match for match in match_all(graph) if isinstance(match, Candidate)]
    machine, sizes = Machine("avx512", 2), [{candidate.output: (1, 128, 384) for candidate in candidates}]

    def decided():
        return list(estimate_all(graph, candidates, sizes, machine).values())

    beside = decided()
    assert [decision.layout for decision in beside] == ["csr"] * 4
    assert all("attention beside it becomes one operator" in decision.reason for decision in beside)
    monkeypatch.setattr(attention_fusion, "has_attention", lambda: False)
    assert [decision.layout for decision in decided()] == [None] * 4


def test_parts_of_one_sparse_projection_count(tmp_path):
    built = PLAIN.build()
    nodes = list(built.graph.node)[3:]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    constants["w"] = np.concatenate([constants.pop(f"w{i}") for i in "qkv"], axis=1)
    constants["wo"] = np.ones((16, 16), np.float32)
    constants["parts"] = np.array([16, 16, 16])
    split = helper.make_node("Split", ["qkv", "parts"], ["q", "k", "v"], name="split", axis=2)
    shape = {"x": ["batch", 12, 16]}
    packed = model(
        [node("MatMul", ["x", "w"], "qkv"), split, *nodes], shape, {"y": ["batch", 12, 16]}, constants
    )
    report, result = lowered(packed, tmp_path)
    assert operators(result)[:3] == ["SparseLinear", "Split", "Attention"]
    assert report.attention[0].fused


def test_nothing_is_fused_for_a_gpu_or_by_an_older_library(tmp_path, monkeypatch):
    source, target = tmp_path / "source.onnx", tmp_path / "lowered.onnx"
    onnx.save(PLAIN.build(), source)
    report = lower(source, target, layout="csr", target="cuda")
    assert "cuda" in report.attention[0].reason
    assert "Softmax" in operators(onnx.load(target))
    monkeypatch.setattr(attention_fusion, "has_attention", lambda: False)
    assert "older" in lower(source, target, layout="csr").attention[0].reason


def test_the_lowered_file_is_valid_and_knows_every_shape(tmp_path):
    _, built = lowered(replace(PLAIN, length="length").build(), tmp_path)
    onnx.checker.check_model(built)
    known = {value.name: value for value in [*built.graph.value_info, *built.graph.output]}
    for item in built.graph.node:
        for name in item.output:
            dims = known[name].type.tensor_type.shape.dim
            assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "length", 16]


def test_lowering_again_changes_nothing(tmp_path):
    _, built = lowered(PLAIN.build(), tmp_path)
    report, again = lowered(built, tmp_path)
    assert operators(again) == ONE_NODE
    assert [layer.op for layer in report.layers] == ["SparseLinear"] * 4


@pytest.mark.parametrize("mask", ["none", "causal", "given"])
@pytest.mark.parametrize("guard", [False, True])
def test_the_zero_filled_twin_computes_the_same_in_standard_operators(mask, guard, tmp_path):
    _, built = lowered(replace(PLAIN, mask=mask, guard=guard).build(), tmp_path)
    twin = zero_filled(built)
    onnx.checker.check_model(twin, full_check=True)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((3, 12, 16)).astype(np.float32)}
    if mask == "given":
        feeds["mask"] = rng.standard_normal((3, 1, 12, 12)).astype(np.float32)
    got, want = (Session(each.SerializeToString()).run(feeds)["y"] for each in (built, twin))
    assert np.allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_queries_without_a_visible_key_keep_what_the_file_said(tmp_path):
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((1, 12, 16)).astype(np.float32)}
    feeds["mask"] = np.zeros((1, 1, 12, 12), np.float32)
    feeds["mask"][0, 0, 3] = -np.inf
    feeds["mask"][0, 0, 4] = np.finfo(np.float32).min
    for guard in (False, True):
        built = replace(PLAIN, mask="given", guard=guard).build()
        _, result = lowered(built, tmp_path)
        want, got = (Session(each.SerializeToString()).run(feeds)["y"] for each in (built, result))
        assert np.isnan(want[0, 3]).any() != guard
        assert np.allclose(got, want, atol=1e-5, equal_nan=True)


def test_sizes_are_followed_through_shape_slice_gather_and_concat():
    constants = {
        "one": np.array([1]),
        "two": np.array([2]),
        "which": np.array([0, -1]),
        "rest": np.array([-1, 7]),
        "huge": np.array([2**63 - 1]),
    }
    nodes = [
        node("Shape", ["x"], "sizes"),
        node("Gather", ["sizes", "which"], "ends", axis=0),
        node("Slice", ["sizes", "one", "huge"], "tail"),
        node("Concat", ["ends", "tail", "rest"], "all", axis=0),
        node("Cast", ["all"], "cast", to=7),
        node("Shape", ["x"], "middle", start=1, end=2),
    ]
    graph = Graph(
        model(
            nodes,
            {"x": ["batch", 5, 16]},
            {"cast": [6], "middle": [1]},
            constants,
            types={"cast": 7, "middle": 7},
        )
    )
    assert sizes_in(graph, "cast") == ("batch", 16, 5, 16, -1, 7)
    assert sizes_in(graph, "middle") == (5,)
    assert sizes_in(graph, "x") is None


def test_what_depends_on_an_input_is_no_constant_content():
    nodes = [
        node("Greater", ["x", "zero"], "positive"),
        node("Or", ["positive", "yes"], "either"),
        node("Not", ["yes"], "no"),
    ]
    constants = {"zero": np.float32(0).reshape(()), "yes": np.array([True, False])}
    graph = Graph(
        model(nodes, {"x": [2]}, {"either": [2], "no": [2]}, constants, types={"either": 9, "no": 9})
    )
    assert spread(graph, "either") is None
    content = spread(graph, "no")
    assert content is not None and content.tolist() == [False, True]
