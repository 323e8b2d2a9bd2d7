from __future__ import annotations

import json

import numpy as np
import pytest

from sparsify.errors import ParityError, UserError
from sparsify.runtime import bench_layer, layouts
from sparsify.runtime.layer_bench import check_layer, parse_conv, parse_linear

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


def test_a_perturbed_weight_breaks_the_comparison(monkeypatch: pytest.MonkeyPatch):
    pack = layouts.pack_linear

    def perturbed(weight: np.ndarray) -> layouts.Packed:
        changed = weight.copy()
        changed.flat[np.flatnonzero(changed)[0]] += 0.01
        return pack(changed)

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
        {"linear": "8x8", "sparsities": (1.0,)},
        {"linear": "8x8", "batches": (0,)},
        {"linear": "8x8", "threads": 0},
    ],
)
def test_what_is_not_understood_is_a_user_error(arguments: dict[str, object]):
    with pytest.raises(UserError):
        bench_layer(**arguments)
