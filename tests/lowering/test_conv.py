"""Conv becomes SparseConv with the same results, or stays with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lowering.graphs import attributes, lowered, model, node, operators, sparse_array


def conv_model(weight, size=(9, 11), bias=False, **options):
    inputs = ["x", "w"] + (["b"] if bias else [])
    constants = {"w": weight}
    if bias:
        constants["b"] = np.arange(weight.shape[0], dtype=np.float32)
    channels = weight.shape[1] * options.get("group", 1)
    shape = ("n", channels, *size)
    return model(
        [node("Conv", inputs, "y", **options)],
        {"x": shape},
        {"y": ("n", weight.shape[0], *([None] * len(size)))},
        constants,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 1], "pads": [0, 2, 1, 0]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"auto_pad": "VALID", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER"},
    ],
)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_geometry(tmp_path, options, kernel, bias):
    if kernel == (1, 1) and "pads" in options:
        options = {key: value for key, value in options.items() if key != "pads"}
    report, result = lowered(conv_model(sparse_array(8, 5, *kernel), bias=bias, **options), tmp_path)
    assert operators(result) == ["SparseConv"]
    assert report.layers[0].shape == (8, 5, *kernel)


def test_same_padding_of_an_unknown_size(tmp_path):
    built = conv_model(sparse_array(8, 5, 3, 3), size=("h", "w_"), auto_pad="SAME_UPPER")
    _, result = lowered(built, tmp_path)
    assert attributes(result.graph.node[0])["pads"] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (conv_model(sparse_array(8, 2, 3, 3), group=2), "group = 2"),
        (conv_model(sparse_array(8, 5, 3, 3, 3), size=(9, 9, 9)), "3-dimensional"),
        (
            conv_model(sparse_array(8, 5, 3, 3), size=("h", "w_"), auto_pad="SAME_UPPER", strides=[2, 2]),
            "auto_pad",
        ),
    ],
)
def test_left_alone_with_a_reason(tmp_path, built, reason):
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["Conv"]
    assert reason in report.layers[0].reason


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pads": [2, 1], "strides": [2]},
        {"dilations": [3]},
        {"auto_pad": "SAME_UPPER", "strides": [2]},
        {"auto_pad": "SAME_LOWER", "strides": [3]},
    ],
)
def test_one_dimension_with_everything_behind_it(tmp_path, options):
    shape = ("n", 8, None if options else 7)
    nodes = [
        node("Conv", ["x", "w", "b"], "h", **options),
        node("Add", ["h", "h2"], "s"),
        node("Relu", ["s"], "y"),
        node("Conv", ["x", "w", "b"], "h2", **options),
    ]
    constants = {"w": sparse_array(8, 5, 3), "b": np.ones(8, np.float32)}
    built = model([nodes[0], nodes[3], *nodes[1:3]], {"x": ("n", 5, 9)}, {"y": shape}, constants)
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["Unsqueeze", "SparseConv", "SparseConv", "Squeeze"]
    assert report.layers[0].shape == (8, 5, 3)


def test_bias_that_is_no_constant_is_named(tmp_path):
    built = model(
        [node("Conv", ["x", "w", "b"], "y")],
        {"x": ("n", 5, 9, 9), "b": (8,)},
        {"y": ("n", 8, 9, 9)},
        {"w": sparse_array(8, 5, 1, 1)},
    )
    report, _ = lowered(built, tmp_path)
    assert "bias" in report.layers[0].reason
