"""Damaged models end in a sentence that names the damage; files that are merely unsorted are sorted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sparsify.errors import SparsifyError, UserError
from sparsify.lowering import lower
from sparsify.lowering.candidate import LeftAlone
from sparsify.lowering.graph import Graph
from sparsify.lowering.integrity import check_written
from sparsify.lowering.matching import match_all
from sparsify.lowering.model_file import read_model
from tests.lowering.graphs import lowered, model, node, operators, sparse_array

W = sparse_array(24, 40)


@pytest.fixture
def built() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "b"], "i"), node("Relu", ["i"], "y")]
    return model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": W, "b": np.ones(40, np.float32)})


def no_opset(built):
    del built.opset_import[:]


def short_constant(built):
    built.graph.initializer[0].raw_data = built.graph.initializer[0].raw_data[:-4]


def negative_size(built):
    built.graph.initializer[0].dims[0] = -24


def unknown_value(built):
    built.graph.node[1].input[1] = "nowhere"


def missing_weight(built):
    del built.graph.initializer[0]


def made_twice(built):
    built.graph.node[1].output[0] = "h"


def lost_output(built):
    built.graph.output[0].name = "z"


def cycle(built):
    built.graph.node[0].input[0] = "y"


def wrong_list(built):
    tensor = built.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0, 2.0])


def lost_input(built):
    del built.graph.node[0].input[1]


def flat_weight(built):
    built.graph.node[0].op_type = "Gemm"
    built.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros(960, np.float32), "w"))


def empty_weight(built):
    built.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((0, 40), np.float32), "w"))


def unknown_operator(built):
    built.graph.node[2].op_type = "Rellu"


def wrong_shape(built):
    built.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((23, 40), np.float32), "w"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_opset, "declares no opset"),
        (short_constant, r"constant 'w' of shape \[24, 40\] needs 3840 bytes and has 3836"),
        (negative_size, "constant 'w'"),
        (unknown_value, "'i_Add' reads 'nowhere'"),
        (missing_weight, "'h_MatMul' reads 'w'"),
        (made_twice, "'h' is made twice"),
        (lost_output, "nothing makes its output 'z'"),
        (cycle, "wait for each other"),
        (wrong_list, "constant 'w'.*damaged"),
        (lost_input, "'h_MatMul': MatMul needs two inputs"),
        (unknown_operator, "Rellu"),
        (wrong_shape, "MatMul"),
    ],
)
def test_damage_is_named(tmp_path, built, damage, message):
    damage(built)
    path = tmp_path / "damaged.onnx"
    path.write_bytes(built.SerializeToString())
    with pytest.raises(UserError, match=message) as raised:
        lower(path, tmp_path / "out.onnx", layout="csr")
    assert "damaged.onnx" in str(raised.value) or damage in (wrong_list, lost_input)
    assert [item.name for item in tmp_path.iterdir()] == ["damaged.onnx"]


@pytest.mark.parametrize(
    ("damage", "reason"), [(flat_weight, "1 dimensions, not 2"), (empty_weight, "'w' is empty")]
)
def test_weights_of_impossible_shapes_are_left_alone(built, damage, reason):
    damage(built)
    (match,) = match_all(Graph(built))
    assert isinstance(match, LeftAlone)
    assert reason in match.reason


def test_short_external_data(tmp_path, built):
    path = tmp_path / "model.onnx"
    onnx.save(built, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.onnx.*(external|constant)"):
        lower(path, tmp_path / "out.onnx", layout="csr")


def test_external_data_outside_the_folder_is_not_read(tmp_path, built):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "model.onnx"
    onnx.save(built, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (inside / "weights.bin").rename(tmp_path / "weights.bin")
    changed = onnx.load(path, load_external_data=False)
    for tensor in changed.graph.initializer:
        tensor.external_data[0].value = "../weights.bin"
    path.write_bytes(changed.SerializeToString())
    with pytest.raises(UserError, match="external data cannot be read"):
        lower(path, tmp_path / "out.onnx", layout="csr")


def test_only_what_the_lowering_broke_is_held_against_it(tmp_path, built):
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(built, good)
    unknown_operator(built)
    onnx.save(built, bad)
    check_written(good, good)
    check_written(bad, bad)
    with pytest.raises(SparsifyError, match="no valid ONNX"):
        check_written(bad, good)


def test_unsorted_nodes_are_sorted(tmp_path, built):
    nodes = list(built.graph.node)[::-1]
    shuffled = onnx.GraphProto(node=nodes)
    del built.graph.node[:]
    built.graph.node.extend(shuffled.node)
    path = tmp_path / "model.onnx"
    path.write_bytes(built.SerializeToString())
    assert operators(read_model(path)) == ["MatMul", "Add", "Relu"]
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]


def test_sorted_nodes_keep_their_order(tmp_path):
    nodes = [node("Neg", ["x"], "b"), node("Abs", ["x"], "a"), node("Add", ["b", "a"], "y")]
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, {"x": (3,)}, {"y": (3,)}), path)
    assert operators(read_model(path)) == ["Neg", "Abs", "Add"]
