"""What one layer becomes: exact counts, shapes of the factors, and numbers that cannot be met."""

from math import prod

import pytest

from sparsify.planning.families import DROP_IN, Amount, DenseShape, build

SHAPES = [
    DenseShape((64, 64)),
    DenseShape((257, 31)),
    DenseShape((96, 24, 5)),
    DenseShape((64, 64, 3, 3)),
    DenseShape((48, 16, 3, 3), groups=4),
    DenseShape((24, 36, 1, 1)),
    DenseShape((20, 12, 3, 3, 3)),
]
DENSITIES = (0.9, 0.5, 0.37, 0.25, 0.1)


def made(family, shape, amount, **options):
    found = build(family, "a.b", shape, amount, **options)
    assert found.problem is None
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("family", DROP_IN)
def test_a_layer_keeps_its_flops_exactly(family, density, shape):
    found = made(family, shape, Amount(density))
    assert found.kept == shape.size
    assert all(0 < tensor.nnz <= prod(tensor.shape) for tensor in found.tensors)
    assert all(tensor.masked or tensor.nnz == prod(tensor.shape) for tensor in found.tensors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", DROP_IN)
def test_counts_come_back_from_density_and_count(family, shape):
    """What a plan file holds is enough to make the same tensors again."""
    found = made(family, shape, Amount(0.3))
    count = found.branches if family == "parallel" else found.rank
    assert made(family, shape, Amount(found.density, count)).tensors == found.tensors


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.99])
def test_branches_are_a_whole_number_near_one_over_the_density(sparsity):
    found = made("parallel", SHAPES[0], Amount(1 - sparsity))
    assert found.branches == max(2, round(1 / (1 - sparsity)))
    counts = [tensor.nnz for tensor in found.tensors]
    assert max(counts) - min(counts) <= 1 and sum(counts) == 64 * 64
    assert found.density == pytest.approx(1 / found.branches)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("first_only", [False, True])
def test_factors_have_the_density_asked_for(shape, first_only):
    found = made("factorized", shape, Amount(0.25), first_only=first_only)
    assert found.density == pytest.approx(0.25, rel=0.5)
    assert first_only or found.density <= 0.25
    u, v = found.tensors
    assert u.nnz / prod(u.shape) == pytest.approx(found.density, rel=0.05)
    assert v.masked is not first_only
    if first_only:
        assert v.nnz == prod(v.shape)


def test_factors_of_a_convolution_u_has_the_kernel_and_v_is_one_by_one():
    found = made("factorized", DenseShape((48, 16, 3, 3), groups=4), Amount(0.5))
    u, v = found.tensors
    assert found.rank % 4 == 0
    assert u.shape == (found.rank, 16, 3, 3) and v.shape == (48, found.rank // 4, 1, 1)
    assert [tensor.fqn for tensor in found.tensors] == ["a.b.u.weight", "a.b.v.weight"]


def test_groups_are_factorized_each_by_itself():
    whole = made("doped", DenseShape((12, 16, 3, 3)), Amount(0.5))
    grouped = made("doped", DenseShape((48, 16, 3, 3), groups=4), Amount(0.5))
    assert grouped.rank == 4 * whole.rank
    assert grouped.tensors[2].nnz == 4 * whole.tensors[2].nnz


def test_doped_takes_as_much_rank_as_leaves_the_density():
    found = made("doped", DenseShape((512, 512, 3, 3)), Amount(0.1))
    assert found.rank == 414 and 0.1 <= found.density < 0.1 + (512 * 9 + 512) / (512 * 512 * 9)


@pytest.mark.parametrize(
    ("family", "shape", "amount", "problem"),
    [
        ("parallel", (2, 3), Amount(count=7), "no weight"),
        ("factorized", (1, 1), Amount(0.25), "no weight"),
        ("doped", (2, 2), Amount(0.75), "rank would be 0"),
        ("doped", (8, 8), Amount(count=4), "no weight"),
        ("factorized", (8, 8), Amount(count=2), "density above 1"),
    ],
)
def test_numbers_that_cannot_be_met_say_why(family, shape, amount, problem):
    assert problem in build(family, "a", DenseShape(shape), amount).problem


def test_at_both_the_density_and_the_count_are_taken_as_they_are():
    shape = DenseShape((64, 32))
    assert made("parallel", shape, Amount(0.5, 3)).kept == 3 * 1024
    assert made("factorized", shape, Amount(0.5, 10)).kept == 480
    assert made("doped", shape, Amount(0.5, 4)).kept == 4 * 96 + 1024
