from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sparsify.errors import ParityError, UserError
from sparsify.masks import parse_pattern
from sparsify.runtime import bench_layer, layouts
from sparsify.runtime.layer_bench import check_layer, parse_conv, parse_linear
from sparsify.runtime.layer_weights import masked_weight, natural_layout

KEYS = {"sparsity", "batch", "pattern", "layout", "kernel", "dense_us", "sparse_us", "speedup", "gflops"}


@pytest.mark.parametrize("layer", [{"linear": "24x16"}, {"conv": "4x8x3x3@6x5"}])
def test_every_setting_gives_a_row_of_the_contract(layer: dict[str, str]):
    report = bench_layer(**layer, sparsities=(0.5, 0.9), batches=(1, 3), threads=2, seconds=0.02)
    json.dumps(report)
    rows = report["results"]
    assert [(row["sparsity"], row["batch"]) for row in rows] == [(0.5, 1), (0.5, 3), (0.9, 1), (0.9, 3)]
    for row in rows:
        assert set(row) >= KEYS
        assert row["speedup"] == pytest.approx(row["dense_us"] / row["sparse_us"])
        assert row["gflops"] > 0
    assert report["threads"] == 2
    assert report["environment"]["kernel"] == rows[0]["kernel"]


@pytest.mark.parametrize(
    ("pattern", "sparsity", "layout"),
    [
        ("fan-in", 0.75, "csr"),
        ("2:4", 0.5, "csr"),
        ("1x4", 0.75, "csr"),
        ("4x1", 0.75, "blocks-4"),
        ("16x1", 0.75, "blocks-16"),
        ("4x4", 0.75, "blocks-4"),
        ("24x1", 0.75, "blocks-8"),
    ],
)
@pytest.mark.parametrize("shape", [(48, 32), (48, 16, 3, 3)])
def test_masks_are_of_the_pattern(shape: tuple[int, ...], pattern: str, sparsity: float, layout: str):
    weight = masked_weight(shape, sparsity, pattern)
    parse_pattern(pattern).check(torch.from_numpy(weight != 0))
    assert np.count_nonzero(weight) == round((1 - sparsity) * weight.size)
    assert natural_layout(pattern) == layout
    assert layouts.stored(weight, layout) == np.count_nonzero(weight)
    linear = {"linear": "32x48"} if len(shape) == 2 else {"conv": "16x48x3x3@4x4"}
    report = bench_layer(**linear, sparsities=(sparsity,), pattern=pattern, batches=(2,), seconds=0.01)
    assert (report["results"][0]["pattern"], report["results"][0]["layout"]) == (pattern, layout)


def test_a_perturbed_weight_breaks_the_comparison(monkeypatch: pytest.MonkeyPatch):
    pack = layouts.pack_linear

    def perturbed(weight: np.ndarray, *, layout: str) -> layouts.Packed:
        changed = weight.copy()
        changed.flat[np.flatnonzero(changed)[0]] += 0.01
        return pack(changed, layout=layout)

    assert check_layer("64x32") < 1e-4
    monkeypatch.setattr(layouts, "pack_linear", perturbed)
    with pytest.raises(ParityError):
        bench_layer(linear="64x32", sparsities=(0.8,), batches=(1,), seconds=0.02)


def test_layers_are_read_as_in_then_out():
    assert parse_linear("3072x768").weight == (768, 3072)
    conv = parse_conv("64x128x3x5@56x28")
    assert conv.weight == (128, 64, 3, 5)
    assert conv.image == (56, 28)
    assert conv.pads == (1, 2, 1, 2)
    assert conv.x_shape(2) == (2, 64, 56, 28)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"linear": "8x8", "conv": "1x1x1x1@4x4"},
        {"linear": "8"},
        {"linear": "0x8"},
        {"conv": "8x8x3x3"},
        {"conv": "8x8x9x9@1x1x"},
        {"conv": "0x8x3x3@4x4"},
        {"linear": "8x8", "pattern": "zebra"},
        {"linear": "8x8", "pattern": "2:4", "sparsities": (0.9,)},
        {"linear": "8x10", "pattern": "4x1"},
        {"linear": "8x8", "sparsities": (1.0,)},
        {"linear": "8x8", "batches": (0,)},
        {"linear": "8x8", "threads": 0},
    ],
)
def test_what_is_not_understood_is_a_user_error(arguments: dict[str, object]):
    with pytest.raises(UserError):
        bench_layer(**arguments)
