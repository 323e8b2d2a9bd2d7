"""The tables of speeds: what a ceiling is, what is cut, and a toy run from cells to tables."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cpu import layers, machine, networks, peer, storage, targets, whole
from benchmarks.cpu.__main__ import main
from benchmarks.cpu.cells import DTYPES, FULL, MACHINE, PARTS, PEER, QUICK, Cell, cells
from benchmarks.cpu.machine import Machine
from benchmarks.cpu.results import Row, rows
from benchmarks.cpu.rounds import compare
from benchmarks.cpu.study import Tables
from benchmarks.cpu.work import Work, ceiling
from benchmarks.study.engine import outstanding
from benchmarks.study.ledger import Ledger
from sparsify import runtime
from sparsify.runtime.layer_weights import masked_weight
from sparsify.runtime.layouts import pack_conv, pack_linear
from sparsify.runtime.node_profile import SparseWeight
from tests.benchmarks.machines import CPU

DOCUMENT = Path(__file__).parents[2] / "docs" / "results" / "cpu.md"


@pytest.fixture(scope="module")
def brief():
    """A machine that is measured in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_FAR", (1 << 20, 4 << 20))
        patch.setattr(machine, "_SAMPLE", 2e-4)
        patch.setattr(machine, "_REPEATS", 3)
        yield


def test_the_machine_is_measured_and_kept(brief):
    found = machine.measure(1)
    assert found.peak > 0.1
    assert len(found.reads) > 2 and min(rate for _, rate in found.reads) > 0
    assert Machine.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.level(4 << 10) == "L1"
    assert found.level(1 << 40) == "memory"
    assert found.bandwidth(1) == found.reads[0][1]
    assert CPU.bandwidth((1 << 20) + 1) == 20.0  # just beyond L2, though nearer to a size inside it


def test_rounds_give_the_median_ratio_and_its_range(monkeypatch):
    ratios = iter((2.0, 4.0, 3.0))

    class Fake:
        def __init__(self, median):
            self.median = median

    monkeypatch.setattr("benchmarks.cpu.rounds.interleave", lambda *_, **__: [Fake(next(ratios)), Fake(1.0)])
    found = compare({"dense": int, "sparse": int}, 1.0)
    assert found["speedup"] == {"dense": 1.0, "sparse": 3.0}
    assert found["range"]["sparse"] == [2.0, 4.0]
    assert found["ms"] == {"dense": 3000.0, "sparse": 1000.0}


def _model(nodes, weights, x):
    """A graph from x to y."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [info("x", TensorProto.FLOAT, ["batch", *x])],
        [info("y", TensorProto.FLOAT, ["batch", "size"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def convolutions():
    """Four convolutions, the third of them depthwise, and a readout behind a mean."""
    node = helper.make_node
    weights = {"a": _random(8, 3, 3, 3), "b": _random(8, 8, 3, 3), "c": _random(8, 1, 3, 3)}
    weights |= {"d": _random(16, 8, 1, 1), "e": _random(5, 16), "axes": np.array([2, 3])}
    nodes = [
        node("Conv", ["x", "a"], ["1"]),
        node("Conv", ["1", "b"], ["2"]),
        node("Conv", ["2", "c"], ["3"], group=8),
        node("Conv", ["3", "d"], ["4"]),
        node("ReduceMean", ["4", "axes"], ["5"], keepdims=0),
        node("Gemm", ["5", "e"], ["y"], transB=1),
    ]
    return _model(nodes, weights, (3, 9, 9))


def _zeros(model):
    return {
        tensor.name: 1 - np.count_nonzero(numpy_helper.to_array(tensor)) / np.prod(tensor.dims)
        for tensor in model.graph.initializer
    }


def test_the_ends_and_depthwise_convolutions_keep_their_weights(convolutions):
    assert networks.cut_model(convolutions, 0.75, pattern="unstructured", ends_dense=True) == 2
    assert _zeros(convolutions) == pytest.approx({"a": 0, "b": 0.75, "c": 0, "d": 0.75, "e": 0, "axes": 0})


def test_a_cut_keeps_the_largest_and_sees_outputs_where_they_stand():
    weights = {"w": _random(8, 12), "v": _random(6, 12)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["1"])]
    nodes += [helper.make_node("Gemm", ["1", "v"], ["y"], transB=1)]
    model = _model(nodes, weights, (8,))
    assert networks.cut_model(model, 0.5, pattern="fan-in", ends_dense=False) == 2
    w, v = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    assert set(np.count_nonzero(w, axis=0)) == {4}  # inputs stand first in a MatMul
    assert set(np.count_nonzero(v, axis=1)) == {6}
    kept = np.abs(weights["v"])[v != 0].reshape(6, 6).min(axis=1)
    dropped = np.abs(weights["v"])[v == 0].reshape(6, 6).max(axis=1)
    assert (kept > dropped).all()


def test_the_peer_gets_the_same_function_at_an_older_opset(convolutions, tmp_path):
    convolutions.graph.node[-1].output[0] = "6"
    convolutions.graph.node.append(helper.make_node("LayerNormalization", ["6", "s", "t"], ["7"]))
    convolutions.graph.node.append(helper.make_node("Gelu", ["7"], ["y"]))
    for name in ("s", "t"):
        convolutions.graph.initializer.append(numpy_helper.from_array(_random(5), name))
    newest, x = tmp_path / "newest.onnx", {"x": _random(2, 3, 9, 9)}
    onnx.save(convolutions, newest)
    older = peer.readable(newest)
    model = onnx.load(older)
    onnx.checker.check_model(model)
    assert model.opset_import[0].version == peer.OPSET
    want, got = (runtime.Session(path, threads=1).run(x)["y"] for path in (newest, older))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert peer.readable(older) == older


def test_an_operator_that_the_peer_lacks_is_named(tmp_path):
    path = tmp_path / "new.onnx"
    onnx.save(_model([helper.make_node("StringConcat", ["x", "x"], ["y"])], {}, (2,)), path)
    with pytest.raises(ValueError, match="StringConcat is not in opset"):
        peer.readable(path)


def test_what_kernels_derive_is_counted_beside_the_file():
    if storage.heap_bytes() is None:
        pytest.skip("the C library does not tell what is allocated")
    weight = masked_weight((256, 512), 0.9, "unstructured")
    packed = pack_linear(weight)
    values = 4 * np.count_nonzero(weight)
    assert storage.derived(packed, (64, 512)) > values
    blocks = pack_linear(masked_weight((256, 512), 0.9, "16x1"), layout="blocks-16")
    few, many = (storage.derived(blocks, (batch, 512)) for batch in (1, 64))
    assert many > values > few
    convolution = pack_conv(masked_weight((32, 16, 3, 3), 0.5, "unstructured"), pads=(1, 1, 1, 1))
    assert storage.derived(convolution, (1, 16, 8, 8)) > 4 * 32 * 16 * 9 // 2


@pytest.mark.parametrize(("pattern", "layout"), [("unstructured", "csr"), ("4x1", "blocks-4")])
def test_mapped_weights_take_what_kernels_derive_and_no_more(pattern, layout):
    if storage.heap_bytes() is None or sys.platform != "linux":
        pytest.skip("the system does not tell what is in memory")
    cell = Cell("bytes", "1024x512", (0.9,), (1, 64), 1, pattern)
    # The system may keep pages for a moment that another process has just touched: the least of three looks.
    looks = [storage.layer_rows(cell) for _ in range(3)]
    for rows_of in zip(*looks, strict=True):
        row = min(rows_of, key=lambda row: row["mapped"])
        assert row["layout"] == layout
        derived = row["memory"] - row["file"]
        kept = row["file"] if derived < 0.01 else 0.0  # blocks that one row reads in place
        assert row["mapped"] == pytest.approx(derived + kept, abs=0.02)
        assert row["mapped"] < row["memory"] + 0.02
    assert {(row["dtype"], row["batch"]) for row in looks[0]} == {(d, b) for d in DTYPES for b in (1, 64)}


def test_sparse_nodes_that_lose_are_found_beside_equal_products():
    shape, columns = (64, 128), 4
    sizes = {"inputs": [[4, 128]], "outputs": [[4, 64]]}
    weights = {"fc": SparseWeight(shape, "csr", 800, 4800)}

    def found(sparse_us):
        dense = [{"node": name, "op": "Gemm", "us": us, **sizes} for name, us in (("a", 8.0), ("b", 12.0))]
        sparse = [{"node": "fc", "op": "SparseLinear", "us": sparse_us, **sizes}]
        return whole.slower_nodes(dense, sparse, weights)

    assert found(10.2) == []
    (node,) = found(15.0)
    assert (node["node"], node["shape"], node["columns"], node["layout"]) == ("fc", [64, 128], columns, "csr")
    assert (node["us"], node["dense_us"]) == (15.0, 10.0)


def test_every_cell_is_measured_once_and_the_peer_only_where_it_is_asked_for():
    found = [cell for part in PARTS for cell in cells(part, FULL, tune=False, peer=True)]
    assert len(set(found)) == len(found)
    without = [cell for part in PARTS for cell in cells(part, FULL, tune=False, peer=False)]
    assert {cell for cell in found if cell.engine != PEER} == set(without)
    assert {cell.part for cell in found if cell.engine == PEER} == {"grid", "resnet50", "bert"}


def test_what_is_promised_is_measured():
    layers_of = cells("linear", FULL, tune=False, peer=False)
    measured = {(cell.model, cell.pattern, cell.sparsities[0], cell.batches[0]) for cell in layers_of}
    assert set(targets.LAYERS) <= measured
    networks_of = [
        cell for part in ("resnet50", "bert") for cell in cells(part, FULL, tune=False, peer=False)
    ]
    measured = {
        (cell.model, cell.pattern, sparsity, batch)
        for cell in networks_of
        for sparsity in cell.sparsities
        for batch in cell.batches
    }
    assert set(targets.NETWORKS) <= measured


def test_a_whole_run_is_foreseen_and_ends_within_half_an_hour(tmp_path):
    tables = Tables(FULL, tmp_path, python="python")
    rest = outstanding(tables, Ledger(Cell), PARTS)
    assert sum(tables.seconds(cell) for cell in rest) < 30 * 60
    assert sum(cell.engine == MACHINE for cell in rest) == len(FULL.threads)


def test_goals_floors_and_misses():
    assert [targets.judged(value, (2.0, 3.0)) for value in (3.0, 2.5, 1.9)] == ["goal", "floor", "**missed**"]
    verdicts = [targets.judged(value, (1.7, 1.3), least=False) for value in (1.3, 1.5, 1.8)]
    assert verdicts == ["goal", "floor", "**missed**"]
    assert targets.judged(1.0, None) == "–"


def _run(folder, *arguments):
    return main(["--quick", "--workers", "0", "-o", str(folder), *arguments])


PARTS_OF_LAYERS = ("--part", "linear", "--part", "grid")


@pytest.fixture(scope="module")
def finished(brief, tmp_path_factory):
    """The output folder of a quick run of layers."""
    folder = tmp_path_factory.mktemp("cpu")
    assert _run(folder, *PARTS_OF_LAYERS) == 0
    return folder


def test_a_run_ends_with_tables_a_plot_and_a_summary(finished):
    ledger = Ledger(Cell, finished / "quick" / "cells.jsonl")
    text = (finished / "quick" / "tables.md").read_text()
    linear = rows(ledger, "linear")
    assert len(linear) == sum(len(patterns) for _, _, patterns in QUICK.layers) * len(QUICK.layer_batches)
    assert all(row.ceiling is not None and row.reached > 0 for row in linear)
    assert {row.values["layout"] for row in linear} == {"csr", "blocks-4"}
    assert text.count("128→64, 90%, 4x1") == len(QUICK.layer_batches)
    assert (finished / "quick" / "grid.png").stat().st_size > 5000
    summary = json.loads((finished / "quick" / "summary.json").read_text())
    assert summary["environment"]["onnxruntime"] and summary["machine"]["1"]["peak"] > 0
    assert str(Path.cwd()) not in json.dumps(summary)


def test_a_layer_that_stays_dense_is_the_same_file_and_ties(finished):
    found = rows(Ledger(Cell, finished / "quick" / "cells.jsonl"), "grid")
    dense = [row for row in found if row.values["layout"] == "dense"]
    assert dense, "a layer of 128→64 is too small to gain"
    assert all(row.speedup == 1.0 and row.values["dense_ms"] == row.values["sparse_ms"] for row in dense)


def test_what_was_measured_is_not_measured_again(finished, capsys):
    file = finished / "quick" / "cells.jsonl"
    before = file.read_text()
    lines = before.splitlines()
    file.write_text("\n".join([*lines[:-1], lines[-1][:30]]))
    assert _run(finished, *PARTS_OF_LAYERS, "--dry-run") == 0
    assert "1 runs to do" in capsys.readouterr().out
    assert _run(finished, *PARTS_OF_LAYERS) == 0
    again = file.read_text().splitlines()
    assert again[: len(lines) - 1] == lines[:-1]
    settings = [set(json.loads(line)["sparsities"]) for line in (lines[-1], again[-1])]
    assert settings[0] == settings[1]


def test_the_document_has_a_place_for_every_table(finished, tmp_path):
    document = tmp_path / "cpu.md"
    table = re.compile(r"(<!-- table: .*? -->\n).*?(<!-- end -->)", re.DOTALL)
    document.write_text(table.sub(r"\1\nNot run yet.\n\n\2", DOCUMENT.read_text()))
    ledger = Ledger(Cell, finished / "quick" / "cells.jsonl")
    Tables(QUICK, finished).report(ledger, tmp_path, document)
    text = document.read_text()
    assert "128→64" in text and "FMA, GFLOP/s" in text
    assert text.count("Not run yet") == 6  # networks, iso, bytes, slower nodes


def test_the_grid_is_held_against_the_peer(finished):
    ledger = Ledger(Cell, finished / "quick" / "cells.jsonl").copy()
    place = Cell("grid", QUICK.grid, (0.8,), (1,), 1, engine=PEER)
    about = {"sparsity": 0.8, "batch": 1, "dense_ms": 1.0, "sparse_ms": 0.9, "range": [1.0, 1.2]}
    ledger.add(place, {"rows": [about | {"speedup": 1.1}]})
    from benchmarks.cpu.report import grid_table

    line = next(line for line in grid_table(ledger).splitlines() if "1.10× (1.00–1.20)" in line)
    assert "missed: DeepSparse" in line


def test_rows_say_what_share_of_their_ceiling_they_reached():
    cell = Cell("linear", "128x64", (0.9,), (1,))
    values = {"sparsity": 0.9, "batch": 1, "speedup": 2.0, "sparse_ms": 2.0, "range": [2, 2]}
    bound = ceiling([Work(1e8, 0, 0, 0, 0)], CPU, 1)
    assert Row(cell, values, bound).reached == pytest.approx(0.5)
    assert Row(cell, values).reached is None
    assert replace(cell, threads=2) != cell


def test_a_plain_layer_has_the_zeros_that_its_name_says(tmp_path):
    path = layers.write_layer("64x32", "4x1", 0.75, tmp_path)
    weight = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    assert weight.shape == (32, 64)
    assert np.count_nonzero(weight) == weight.size // 4
    assert layers.write_layer("64x32", "4x1", 0.75, tmp_path) == path
