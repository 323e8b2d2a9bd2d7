"""Output names follow the structure that the model returns."""

from __future__ import annotations

import pytest
import torch

from sparsify.onnx_export.names import output_names, tensors_of

A, B, C = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["output"]),
        ((A, B), ["output_0", "output_1"]),
        ({"logits": A, "hidden": B}, ["logits", "hidden"]),
        ({"logits": A, "cache": ((B, C), None)}, ["logits", "cache_0_0", "cache_0_1"]),
        ({"a.b/c": A}, ["a_b_c"]),
    ],
)
def test_names(result, names):
    assert output_names(result) == names
    assert len(tensors_of(result)) == len(names)


def test_order_is_that_of_the_structure():
    assert [float(item) for item in tensors_of({"z": (C, A), "a": B})] == [2.0, 0.0, 1.0]


def test_names_are_unique_and_differ_from_the_inputs():
    assert output_names({"x": A, "x_out": B}, taken=["x"]) == ["x_out", "x_out_out"]
