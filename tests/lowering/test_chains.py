"""Sparse convolutions that feed each other become one node, where nothing outside reads between them."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from sparsify.errors import UserError
from sparsify.lowering import chain_choice, decisions, lower, tune
from sparsify.lowering.chains import find_regions, with_joined
from sparsify.lowering.cost import Decision
from sparsify.runtime import Session
from sparsify.runtime.conv_chain import OPERATOR, join, separate
from tests.lowering.graphs import model, node, operators, sparse_array
from tests.models import randomise_statistics


def conv(x, name, channels=8, kernel=1, seed=0, density=0.2, **options):
    """Nodes and constants of one convolution."""
    pads = [kernel // 2] * 4
    weight = sparse_array(channels, channels, kernel, kernel, density=density, seed=seed)
    return node("Conv", [x, f"{name}.w"], name, pads=pads, **options), {f"{name}.w": weight}


def network(rows, outputs=("y",), channels=8, size=6, batch="n", **options):
    """A model of convolutions (name, input) and other nodes, over maps of `size` squared."""
    nodes, constants = [], {}
    for seed, row in enumerate(rows):
        if isinstance(row, onnx.NodeProto):
            nodes.append(row)
            continue
        made, held = conv(row[1], row[0], channels, kernel=1 + 2 * (seed % 2), seed=seed, **options)
        nodes.append(made)
        constants |= held
    shape = (batch, channels, size, size)
    return model(nodes, {"x": shape}, dict.fromkeys(outputs, shape), constants)


def lowered(built, folder, **options):
    onnx.save(built, folder / "source.onnx")
    report = lower(folder / "source.onnx", folder / "out.onnx", **options)
    return report, onnx.load(folder / "out.onnx")


def steps_of(built):
    """Names of the convolutions in each chain."""
    chains = [item for item in built.graph.node if item.op_type == OPERATOR]
    return [[step.name.removesuffix("_Conv") for step in separate(item)] for item in chains]


def test_a_residual_block_is_one_chain(tmp_path):
    rows = [("a", "x"), ("b", "a"), ("c", "b"), node("Add", ["c", "x"], "s"), node("Relu", ["s"], "y")]
    report, result = lowered(network(rows), tmp_path, layout="csr", chains=True)
    assert operators(result) == [OPERATOR]
    assert steps_of(result) == [["a", "b", "c"]]
    (name,) = {layer.chain for layer in report.layers}
    assert name == result.graph.node[0].name and len(report.layers) == 3
    assert all(layer.layout == "csr" for layer in report.layers)
    assert report.to_dict()["layers"][0]["chain"] == name
    assert not result.graph.value_info


def test_the_convolutions_of_a_chain_are_listed_when_it_is_read_again(tmp_path):
    _, result = lowered(network([("a", "x"), ("b", "a"), ("y", "b")]), tmp_path, layout="csr", chains=True)
    report = lower(tmp_path / "out.onnx", tmp_path / "again.onnx")
    assert [layer.node for layer in report.layers] == ["a_Conv", "b_Conv", "y_Conv"]
    assert {layer.chain for layer in report.layers} == {result.graph.node[0].name}
    assert {(layer.decision, layer.layout, layer.reason) for layer in report.layers} == {
        ("sparse", "csr", "sparse already")
    }


@pytest.mark.parametrize(
    ("rows", "outputs", "chains"),
    [
        # b is read outside too, so the chain ends there and what follows is another.
        (
            [("a", "x"), ("b", "a"), ("c", "b"), ("d", "c"), node("Sigmoid", ["b"], "t")],
            ("d", "t"),
            [["a", "b"], ["c", "d"]],
        ),
        # A graph output between them.
        ([("a", "x"), ("b", "a"), ("c", "b"), ("d", "c")], ("b", "d"), [["a", "b"], ["c", "d"]]),
        # What leaves and comes back would wait for itself.
        (
            [
                ("a", "x"),
                node("Sigmoid", ["a"], "t"),
                ("b", "a"),
                node("Mul", ["b", "t"], "m"),
                ("c", "m"),
                ("d", "c"),
            ],
            ("d",),
            [["c", "d"]],
        ),
        # Two branches from one map that meet.
        ([("a", "x"), ("b", "a"), ("c", "a"), node("Add", ["b", "c"], "y")], ("y",), [["a", "b", "c"]]),
        # Two branches that do not.
        ([("a", "x"), ("b", "a"), ("c", "a")], ("b", "c"), []),
        # Two chains side by side.
        ([("a", "x"), ("b", "a"), ("c", "x"), ("d", "c")], ("b", "d"), [["a", "b"], ["c", "d"]]),
    ],
)
def test_regions_end_where_something_outside_reads(tmp_path, rows, outputs, chains):
    _, result = lowered(network(rows, outputs), tmp_path, layout="csr", chains=True)
    assert steps_of(result) == chains
    onnx.checker.check_model(result)


def test_a_chain_of_several_outer_maps_keeps_all_shapes(tmp_path):
    rows = [node("Sigmoid", ["x"], "t"), ("a", "x"), ("b", "a"), node("Add", ["b", "t"], "s"), ("y", "s")]
    _, result = lowered(network(rows), tmp_path, layout="csr", chains=True)
    assert operators(result) == ["Sigmoid", OPERATOR]
    assert list(result.graph.node[1].input[:2]) == ["x", "t"]
    made = {name for item in result.graph.node for name in item.output}
    known = {value.name for value in (*result.graph.value_info, *result.graph.output)}
    assert made == known


def test_a_bias_that_a_caller_may_replace_keeps_its_node_apart(tmp_path):
    rows = [("a", "x"), ("b", "a"), ("y", "b")]
    _, result = lowered(network(rows), tmp_path, layout="csr", chains=False)
    assert find_regions(result) == [(0, 1, 2)]
    free = onnx.ModelProto()
    free.CopyFrom(result)
    free.graph.node[1].input[1] = "bias"
    free.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, [8]))
    assert find_regions(free) == []
    assert operators(with_joined(result, [(0, 1)])) == [OPERATOR, "SparseConv"]
    assert join(list(result.graph.node)).name == "a_Conv..y_Conv"


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_all_blocks_of_a_tiny_resnet_become_one_chain(tmp_path, kind):
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type=kind, num_labels=5
    )
    network = randomise_statistics(ResNetForImageClassification(config)).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 4 and "embedder" not in name:
                weight *= torch.rand_like(weight) < 0.3
    torch.onnx.export(
        network,
        (torch.randn(2, 3, 32, 32),),
        tmp_path / "dense.onnx",
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
        dynamo=False,
    )
    plain = lower(tmp_path / "dense.onnx", tmp_path / "plain.onnx", layout="csr", chains=False)
    report = lower(tmp_path / "dense.onnx", tmp_path / "out.onnx", layout="csr", chains=True)
    assert report.nodes == plain.nodes
    result = onnx.load(tmp_path / "out.onnx")
    (chain,) = steps_of(result)
    assert len(chain) == {"basic": 7, "bottleneck": 10}[kind]
    assert len(chain) == sum(layer.chain is not None for layer in report.layers)
    for batch in (1, 3, 4):
        x = {result.graph.input[0].name: np.random.default_rng(batch).random((batch, 3, 32, 32), np.float32)}
        got = Session(tmp_path / "out.onnx", threads=2).run(x)
        want = Session(tmp_path / "dense.onnx").run(x)
        for name, value in want.items():
            assert np.abs(got[name] - value).max() <= 1e-4 * max(1.0, np.abs(value).max())


def deep(batch, size=14):
    """Convolutions large enough to be sparse by estimate."""
    rows = [("a", "x"), ("b", "a"), ("c", "b"), ("y", "c")]
    return network(rows, channels=128, size=size, batch=batch, density=0.05)


@pytest.mark.parametrize(
    ("batch", "options", "chained"),
    [
        ("n", {"threads": 2}, True),
        (1, {}, False),
        (16, {}, False),  # on one thread, all maps of all images fit into the caches
        ("n", {"batches": (256,)}, True),
        (3, {"threads": 2}, False),
        (4, {"threads": 2}, True),
        ("n", {"batches": (1,)}, False),
        ("n", {"batches": (16,), "threads": 2}, True),
        ("n", {"batches": (1, 16), "threads": 2}, True),
        ("n", {"batches": (16,), "chains": False}, False),
        (1, {"chains": True}, True),
        ("n", {"layout": "csr"}, False),
        ("n", {"layout": "dense", "chains": True}, False),
    ],
)
def test_without_rows_chains_are_made_for_two_images_a_thread(tmp_path, monkeypatch, batch, options, chained):
    monkeypatch.setattr(chain_choice.Machine, "here", avx512)
    monkeypatch.setattr(chain_choice, "time_on_rows", lambda *args, **options: math.inf)
    report, result = lowered(deep(batch), tmp_path, **options)
    assert (OPERATOR in operators(result)) == chained
    assert all((layer.chain is not None) == chained for layer in report.layers)


@pytest.mark.parametrize(
    ("kernel", "size", "threads", "chained"),
    [("avx512", 14, 1, True), ("avx512", 14, 2, True), ("avx2", 28, 2, True), ("avx512", 12, 2, False)],
)
def test_rows_make_chains_pay_for_one_image(tmp_path, monkeypatch, kernel, size, threads, chained):
    monkeypatch.setattr(chain_choice.Machine, "here", lambda *rest: chain_choice.Machine(kernel, threads))
    report, result = lowered(deep(1, size), tmp_path, threads=threads)
    assert (OPERATOR in operators(result)) == chained
    assert all((layer.chain is not None) == chained for layer in report.layers)
    x = np.random.default_rng(1).standard_normal((1, 128, size, size), np.float32)
    expected, found = (Session(tmp_path / name).run({"x": x})["y"] for name in ("source.onnx", "out.onnx"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)


def test_weights_that_stay_dense_by_themselves_become_sparse_on_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_choice.Machine, "here", avx512)
    rows = [("a", "x"), ("b", "a"), ("c", "b"), ("y", "c")]
    built = network(rows, channels=32, size=56, batch=1, density=0.2)
    plain, _ = lowered(built, tmp_path, chains=False)
    report, _ = lowered(built, tmp_path)
    assert report.nodes.sparse > plain.nodes.sparse
    assert any("on rows of its maps" in layer.reason for layer in report.layers)


def avx512(threads=None, *rest):
    return chain_choice.Machine("avx512", threads or 1)


def test_maps_that_leave_the_caches_are_decided_image_by_image(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_choice.Machine, "here", avx512)
    rows = [("a", "x"), ("b", "a"), ("c", "b"), ("y", "c")]
    built = network(rows, channels=64, size=56, density=0.1)
    plain, _ = lowered(built, tmp_path, batches=(32,), chains=False)
    assert {layer.decision for layer in plain.layers} >= {"dense"}
    report, result = lowered(built, tmp_path, batches=(32,))
    assert report.nodes.sparse > plain.nodes.sparse
    assert "image by image" in next(layer.reason for layer in report.layers if layer.chain)
    assert OPERATOR in operators(result)


def test_a_gap_is_closed_where_the_sum_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_choice.Machine, "here", avx512)
    monkeypatch.setattr(chain_choice, "time_on_rows", lambda *args, **options: math.inf)
    estimate_all = chain_choice.estimate_all

    def with_a_gap(graph, candidates, *rest):
        found = estimate_all(graph, candidates, *rest)
        return found | {candidates[1].index: Decision(None, "made up")}

    monkeypatch.setattr(decisions, "estimate_all", with_a_gap)
    monkeypatch.setattr(chain_choice, "estimate_all", with_a_gap)
    report, result = lowered(deep(16), tmp_path, threads=2)
    assert steps_of(result) == [["a", "b", "c", "y"]]
    assert "closes a gap in a chain" in report.layers[1].reason
    monkeypatch.setattr(chain_choice, "GAP", 0.01)
    report, result = lowered(deep(16), tmp_path, threads=2)
    assert report.layers[1].chain is None or "closes" not in report.layers[1].reason


def test_tuning_times_whole_files_with_and_without_chains(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decisions, "measure", lambda *args, **options: {})
    asked, times = [], [1.0, 1.0]

    def compare(source, models, feeds, *, machine):
        kinds = [operators(built) for built in models]
        asked.append(kinds)
        return [[1.0, *(times[OPERATOR in kind] for kind in kinds)] for _ in feeds]

    monkeypatch.setattr(chain_choice, "compare_models", compare)
    monkeypatch.setattr(tune, "compare_models", compare)
    for row, chained in (((0.8, 0.5), True), ((0.5, 0.8), False), ((0.8, 1.1), False)):
        times[:] = row
        report, result = lowered(deep("n"), tmp_path, tune=True, batches=(4,), cache=False)
        assert (OPERATOR in operators(result)) == chained
        assert ("whole file with chains: 500.00 ms" in report.layers[0].reason) == chained
    assert any(OPERATOR in kind for kind in asked[-1]) and any(OPERATOR not in kind for kind in asked[-1])


def test_chains_are_refused_on_gpus(tmp_path):
    with pytest.raises(UserError, match="chains run on CPUs only"):
        lowered(deep("n"), tmp_path, target="cuda", chains=True)
    _, result = lowered(deep("n"), tmp_path, target="cuda")
    assert OPERATOR not in operators(result)
