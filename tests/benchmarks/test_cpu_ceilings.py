"""What bounds a product: the resource that takes longest, from shapes, layout and the kernels' tiles."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from benchmarks.cpu import panels
from benchmarks.cpu.work import Work, ceiling, sparse_work
from tests.benchmarks.machines import CPU


def test_a_ceiling_is_the_resource_that_takes_longest():
    assert ceiling([Work(1e6, 0, 0, 0, 0)], CPU, 1 << 20).seconds == pytest.approx(1e-5)
    assert ceiling([Work(1e6, 1e6, 0, 0, 0)], CPU, 1 << 20).resource == "load ports"
    assert ceiling([Work(1e6, 0, 0, 1e6, 0)], CPU, 8 << 20).resource == "L3"
    assert ceiling([Work(1e6, 0, 0, 1e6, 0)], CPU, 8 << 20).seconds == pytest.approx(1e6 / 20e9)
    assert ceiling([Work(1e6, 0, 0, 1e6, 0)], CPU, 256 << 20).resource == "memory"
    assert ceiling([Work(1, 0, 1e7, 1, 0)], CPU, 256 << 20).resource == "L2"


def test_the_ceiling_of_a_network_is_the_sum_over_its_products_and_names_the_largest_part():
    found = ceiling([Work(1e6, 0, 0, 0, 0, count=3), Work(0, 5e4, 0, 0, 0)], CPU, 1 << 20)
    assert found.seconds == pytest.approx(4e-5)
    assert (found.resource, found.share) == ("FMA", pytest.approx(0.75))
    assert ceiling([], CPU, 1).seconds == 0


def test_blocks_move_the_bound_from_the_load_ports_to_the_multiply_adds():
    bounds = {}
    for layout in ("csr", "blocks-4", "blocks-16"):
        work = sparse_work(
            (768, 3072), 235930, 1415580, 64, layout, vector=64, moved=0.0, tuned=panels.SKYLAKE
        )
        least = work.seconds(CPU, 1 << 20)
        bounds[layout] = least["load ports"] / least["FMA"]
    # 100 GFLOP/s are 3.1 multiply-adds of a register for 5 loads: 6.25 loads feed 4 of them, or 8.25 feed 16.
    assert bounds["csr"] == pytest.approx(5.25 / 4 * 3.125 / 5, rel=0.01)
    assert bounds["blocks-4"] == pytest.approx(8.25 / 16 * 3.125 / 5, rel=0.01)
    assert bounds["blocks-16"] < bounds["csr"]


def test_tiles_are_those_of_the_kernels():
    family = Path(__file__).parents[2] / "sparsify" / "runtime" / "native" / "kernels" / "csr"
    text = "".join(
        (family / name).read_text() for name in ("isa.h", "panel_plan.h", "panel_plan.cc", "conv_flat.cc")
    )
    named = re.findall(r"constexpr \w+ (k\w+)(?:\[.*?\])? = (.*?);", text)
    stated = {name: value.replace("kPanelColumns", "64").replace("kGroup", "16") for name, value in named}
    pairs = {
        "kGroup": panels.GROUP,
        "kMaxGroups": panels.MOST_GROUPS,
        "kFewestStreaming": panels.FEWEST_STREAMING,
        "kFlatTileFloats": panels.FLAT_TILE_FLOATS,
        "kMostInputs": panels.MOST_INPUTS,
        "kShortest": panels.SHORTEST,
        "kMaxCount": panels.MOST_COUNT,
        "kFullTile": panels.FULL_TILE,
        "kDenseBlockRows": panels.DENSE_BLOCK_ROWS,
        "kDenseShare": panels.DENSE_SHARE,
        "kFewestBlockRows": panels.FEWEST_BLOCK_ROWS,
        "kLargestTile": panels.LARGEST_TILE,
        "kMostColumns": panels.MOST_COLUMNS,
    }
    for name, value in pairs.items():
        assert math.prod(float(factor) for factor in stated[name].split("*")) == value, name
    assert stated["kStreamBytes"] == "4 << 10" and panels.STREAM_BYTES == 4 << 10
    assert stated["kFullNarrowTile"] == str(panels.FULL_NARROW_TILE)
    assert tuple(map(int, stated["kSpacing"].strip("{}").split(","))) == panels.SPACING


def test_blocks_have_longer_tiles_and_flat_ones_hold_many_channels():
    linear = (768, 3072)
    assert panels.tiling(linear, 235930, 64, 1, None, panels.SKYLAKE).tiles == 28
    assert panels.tiling(linear, 235930, 64, 4, None, panels.SKYLAKE).tiles == 24
    assert panels.tiling(linear, 235930, 64, 16, None, panels.SKYLAKE).tiles == 12
    assert panels.tiling(linear, 4 * 235930, 64, 1, None, panels.SKYLAKE).tiles == 39  # 80 inputs bring 32
    # 13 groups of 16 columns: panels of 4, 5 and 4, and tiles for the widest.
    assert panels.tiling(linear, 235930, 197, 1, None, panels.SKYLAKE).panels == 3
    assert panels.tiling(linear, 235930, 197, 1, None, panels.SKYLAKE).tiles == 32
    image = panels.Image(1, (28, 28), (28, 28))
    assert panels.flat_shape((3, 3), image).floats == 128
    flat = panels.tiling((128, 128, 3, 3), 36864, 28 * 28, 4, image, panels.SKYLAKE)
    assert (flat.tiles, flat.packed) == (5, 13 * 128 * 128)
    gathered = panels.tiling((128, 128, 3, 3), 36864, 28 * 28, 2, image, panels.SKYLAKE)
    assert (gathered.tiles, gathered.packed) == (12, 1152 * 28 * 28)
    strided = panels.Image(1, (56, 56), (28, 28))
    assert panels.flat_shape((3, 3), strided).floats == 4 * 64 + 16 * (2 + 2 + 0 + 1)


def test_a_larger_first_level_cache_has_longer_tiles_and_dense_blocks_of_four_are_gathered_on_deep_cpus():
    linear, conv, here = (768, 3072), (128, 128, 3, 3), panels.SAPPHIRE_RAPIDS
    assert panels.tiling(linear, 235930, 64, 1, None, here).tiles == 18  # 176 inputs
    assert panels.tiling(linear, 235930, 64, 4, None, here).tiles == 16  # 192
    image = panels.Image(1, (28, 28), (28, 28))
    assert panels.tiling(conv, 36864, 28 * 28, 4, image, here).packed == 1152 * 28 * 28
    assert panels.tiling(conv, 14746, 28 * 28, 4, image, here).packed == 13 * 128 * 128
    assert panels.tiling(conv, 36864, 28 * 28, 16, image, here).packed == 13 * 128 * 128


def test_few_rows_are_bound_by_the_bytes_of_the_weights():
    work = sparse_work((768, 3072), 235930, 1415580, 1, "csr", vector=64, moved=15360.0)
    found = ceiling([work], CPU, 4 << 20)
    assert found.resource == "L3"
    assert found.seconds == pytest.approx(1415580 / 20e9)  # the input is in L1
