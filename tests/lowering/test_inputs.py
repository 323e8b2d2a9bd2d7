"""Random inputs fit the graph: shapes, symbols, ranges of integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sparsify.errors import UserError
from sparsify.lowering.graph import Graph
from sparsify.lowering.inputs import random_inputs
from tests.lowering.graphs import model, node


def test_symbols_are_consistent_and_expressions_are_worked_out():
    built = model(
        [node("Identity", ["a"], "y")],
        {"a": ("n", "s", 8), "b": ("n", "s"), "c": ("s + 1", "2*s"), "d": (3, None)},
        {"y": ("n", "s", 8)},
    )
    inputs = random_inputs(Graph(built), batch=2, other=16)
    assert {name: value.shape for name, value in inputs.items()} == {
        "a": (2, 16, 8),
        "b": (2, 16),
        "c": (17, 32),
        "d": (3, 16),
    }
    assert all(value.dtype == np.float32 for value in inputs.values())


def test_token_ids_stay_below_the_smallest_table_that_they_reach():
    nodes = [
        node("Gather", ["big", "ids"], "a"),
        node("Cast", ["ids"], "ids32", to=TensorProto.INT32),
        node("Unsqueeze", ["ids32", "axis"], "more"),
        node("Gather", ["small", "more"], "b"),
        node("Cast", ["mask"], "m", to=TensorProto.FLOAT),
    ]
    built = model(
        nodes,
        {"ids": ("n", 50), "mask": ("n", 50)},
        {"a": ("n", 50, 4), "b": ("n", 1, 50, 4), "m": ("n", 50)},
        {"big": np.ones((1000, 4), np.float32), "small": np.ones((7, 4), np.float32), "axis": np.array([1])},
        types={"ids": TensorProto.INT64, "mask": TensorProto.INT64},
    )
    inputs = random_inputs(Graph(built))
    assert set(np.unique(inputs["ids"])) == set(range(7))
    assert (inputs["mask"] == 1).all()


def test_string_inputs_are_refused():
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    graph = helper.make_graph([node("Identity", ["x"], "y")], "g", [text], [text.__class__(name="y")])
    with pytest.raises(UserError, match=r"'x'.*inputs="):
        random_inputs(Graph(onnx.helper.make_model(graph)))
