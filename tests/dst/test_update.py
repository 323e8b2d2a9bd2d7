"""The update under every pattern, against a plain account of what it should do."""

from __future__ import annotations

import pytest
import torch

from sparsify.dst.cells import Cells
from sparsify.dst.update import drop_and_grow
from sparsify.masks import from_matrix, parse_pattern, to_matrix

SHAPES = [(8, 12), (8, 4, 3), (4, 8, 3, 2), (4, 4, 2, 1, 3)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def in_python(weight, mask, growth, fraction, cell_of):
    """Keeps the largest over all, then fills cell by cell; `cell_of` names the cell of each flat position."""
    weight, growth = weight.abs().flatten().tolist(), growth.flatten().tolist()
    active = [at for at, on in enumerate(mask.flatten().tolist()) if on]
    kept = sorted(active, key=lambda at: (-weight[at], at))[: len(active) - int(len(active) * fraction)]
    new = []
    for cell in sorted(set(cell_of)):
        places = [at for at in range(len(weight)) if cell_of[at] == cell]
        count = sum(at in active for at in places)
        here = sorted((at for at in places if at in kept), key=lambda at: (-weight[at], at))[:count]
        free = sorted((at for at in places if at not in here), key=lambda at: (-growth[at], at))
        new += here + free[: count - len(here)]
    return sorted(new)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["unstructured", "fan-in", "2:4", "1:2"])
def test_drop_and_grow_cell_by_cell(name, shape):
    pattern = parse_pattern(name)
    mask = pattern.random(shape, pattern.count(shape, 0.4), seeded(0))
    weight, growth = torch.randn(shape, generator=seeded(1)), torch.rand(shape, generator=seeded(2))
    new = drop_and_grow(weight * mask, mask, growth, 0.6, pattern)
    pattern.check(new)
    rows, columns = to_matrix(mask).shape
    if name == "unstructured":
        expected = in_python(weight * mask, mask, growth, 0.6, [0] * mask.numel())
        assert new.flatten().nonzero().flatten().tolist() == expected
        return
    size = columns if name == "fan-in" else pattern.m
    cell_of = [at // size for at in range(rows * columns)]
    matrices = [to_matrix(tensor) for tensor in (weight * mask, mask, growth)]
    expected = in_python(*matrices, 0.6, cell_of)
    assert to_matrix(new).flatten().nonzero().flatten().tolist() == expected
    assert not torch.equal(new, mask)


def test_blocks_go_and_come_by_their_sums():
    """Of two active 2x2 blocks the one of smaller sum goes, though it holds the largest weight."""
    weight = torch.zeros(4, 6)
    weight[:2, :2], weight[2:, 4:] = 2.0, torch.tensor([[5.0, 0.1], [0.1, 0.1]])
    mask = weight != 0
    growth = torch.zeros(4, 6)
    growth[0, 2], growth[:2, 4:] = 3.0, 1.0
    new = drop_and_grow(weight, mask, growth, 0.5, parse_pattern("2x2"))
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[:2, :2] = expected[:2, 4:] = True
    assert torch.equal(new, expected)


def test_an_ablated_row_stays_empty_without_ablation():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    weight, growth = torch.rand(3, 4, generator=seeded(0)) * mask, torch.rand(3, 4, generator=seeded(1))
    new = drop_and_grow(weight, mask, growth, 1.0, parse_pattern("fan-in"))
    assert new.sum(1).tolist() == [2, 0, 2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["unstructured", "fan-in", "2:4", "2x2", "4x1"])
def test_views_undo_each_other(name, shape):
    pattern = parse_pattern(name)
    cells = Cells(pattern, shape)
    mask = pattern.random(shape, pattern.count(shape, 0.5), seeded(0))
    folded = cells.fold_mask(mask)
    assert tuple(folded.shape) == cells.size and folded.dtype == torch.bool
    assert torch.equal(cells.unfold(folded), mask)
    values = torch.randn(shape, generator=seeded(1))
    assert cells.fold(values).sum() == pytest.approx(float(values.sum()), abs=1e-4)
    assert cells.fold(values.bfloat16()).dtype == torch.float32
    assert torch.equal(from_matrix(to_matrix(values), shape), values)
