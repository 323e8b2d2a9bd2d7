"""Every layout, type and kind of batch in Triton's interpreter, against the NumPy reference."""

from __future__ import annotations

import pytest
import torch

from sparsify.runtime.triton import gather, linear, tuning
from sparsify.runtime.triton.epilogue import ACTIVATIONS, closed, ending_of
from sparsify.runtime.triton.launch import recording
from sparsify.runtime.triton.layer import sparse_layer
from sparsify.runtime.triton.packing import pack
from tests.runtime.triton.weights import BOUNDS, LAYOUTS, bounds_of, close, mask, normal, reference, weight

INFINITY = float("inf")
COLUMNS = 40
CASES = [(torch.float32, 1), (torch.float32, 18), (torch.float16, 3), (torch.float16, 18)]
CASES += [(torch.bfloat16, 2), (torch.bfloat16, 18), (torch.float64, 2), (torch.float64, 17)]


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that two programs fill: every program takes as many rows as it can."""
    monkeypatch.setattr(tuning, "PROGRAMS", 2)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(("dtype", "batch"), CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_product_and_gradients(layout: str, dtype: torch.dtype, batch: int) -> None:
    rows = 37 if layout.startswith("blocks") else 7
    active = mask(layout, rows, COLUMNS)
    dense = weight(active, dtype)
    packed = pack(dense, active, layout=layout)
    x, dy = normal(batch, COLUMNS, dtype=dtype), normal(batch, rows, dtype=dtype, seed=2)
    bias = normal(rows, dtype=dtype, seed=3)
    assert close(linear.forward(x, packed, bias), reference(x, dense, bias), COLUMNS)
    assert close(linear.input_gradient(dy, packed), reference(dy, dense.t().contiguous()), rows)
    gradient = packed.dense(linear.weight_gradient(x, dy, packed))
    assert not gradient[~active].any()
    whole = dy.t().double() @ x.double()
    assert close(gradient, torch.where(active, whole, 0).numpy(), batch)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("layout", "batch"), [("csr", 2), ("csr", 17), ("nm-2:4", 2)])
def test_activations(layout: str, batch: int, activation: str) -> None:
    active = mask(layout, 5, 24)
    dense = weight(active, torch.float32)
    x, bias = normal(batch, 24, dtype=torch.float32), normal(5, dtype=torch.float32, seed=3)
    packed = pack(dense, active, layout=layout)
    got = linear.forward(x, packed, bias, activation, bounds=bounds_of(activation))
    assert close(got, reference(x, dense, bias, activation), 24)
    other = reference(x, dense, bias, "relu" if activation != "relu" else "silu")
    assert not close(got, other, 24)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(("dtype", "batch"), [(torch.float32, 3), (torch.float16, 18), (torch.float64, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_residual_is_added_before_the_activation(layout: str, dtype: torch.dtype, batch: int) -> None:
    rows = 37 if layout.startswith("blocks") else 7
    active = mask(layout, rows, COLUMNS)
    dense = weight(active, dtype)
    x, residual = 0.2 * normal(batch, COLUMNS, dtype=dtype), normal(batch, rows, dtype=dtype, seed=5)
    packed = pack(dense, active, layout=layout)
    got = linear.forward(x, packed, None, "clip", residual=residual, bounds=BOUNDS)
    assert close(got, reference(x, dense, None, "clip", residual), COLUMNS)
    assert not close(got, reference(x, dense, None, "clip"), COLUMNS)
    assert not close(got, reference(x, dense, None, "none", residual), COLUMNS)


@pytest.mark.usefixtures("few_programs")
def test_bounds_may_be_infinite_and_nan_passes_between_them() -> None:
    active = mask("csr", 5, 24)
    packed = pack(weight(active, torch.float32), active)
    for batch in (2, 17):
        x = normal(batch, 24, dtype=torch.float32)
        x[0] = float("nan")
        sums = linear.forward(x, packed)
        for low, high in ((-INFINITY, 0.1), (-0.1, INFINITY), (-INFINITY, INFINITY)):
            got = linear.forward(x, packed, None, "clip", bounds=(low, high))
            assert torch.equal(got.nan_to_num(7), sums.clamp(low, high).nan_to_num(7))


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["csr", "condensed", "blocks-16x16", "nm-2:4"])
def test_gradients_of_a_layer(layout: str, activation: str) -> None:
    active = mask(layout, 6, 16)
    dense = weight(active, torch.float64)
    packed = pack(dense, active, layout=layout)
    x, bias = normal(3, 16, dtype=torch.float64), normal(6, dtype=torch.float64, seed=3)
    residual = normal(3, 6, dtype=torch.float64, seed=4)
    ours = [tensor.clone().requires_grad_() for tensor in (x, packed.values, bias, residual)]
    y = sparse_layer(ours[0], packed, *ours[1:3], activation, residual=ours[3], bounds=bounds_of(activation))
    theirs = [tensor.clone().requires_grad_() for tensor in (x, dense, bias, residual)]
    sums = torch.nn.functional.linear(*theirs[:3]) + theirs[3]
    want = closed(sums, ending_of(None, None, activation, bounds_of(activation)))
    assert torch.allclose(y, want)
    slopes = normal(3, 6, dtype=torch.float64, seed=6)
    found = list(torch.autograd.grad(y, ours, slopes))
    expected = list(torch.autograd.grad(want, theirs, slopes))
    found[1], expected[1] = packed.dense(found[1]), expected[1] * active
    for got, right in zip(found, expected, strict=True):
        assert torch.allclose(got, right)
        assert got.any()


def test_one_kernel_does_it_all_where_no_gradient_is_asked_for() -> None:
    packed = pack(weight(mask("csr", 6, 24), torch.float32))
    x, residual = normal(2, 24, dtype=torch.float32), normal(2, 6, dtype=torch.float32)
    with recording() as launches:
        sparse_layer(x, packed, None, None, "clip", residual=residual, bounds=BOUNDS)
    assert {launch.arguments["ACTIVATION"] for launch in launches} == {"clip"}
    x.requires_grad_()
    with recording() as launches:
        sparse_layer(x, packed, None, None, "clip", residual=residual, bounds=BOUNDS)
    assert {launch.arguments["ACTIVATION"] for launch in launches} == {"none"}
    assert all(launch.arguments["residual"] is not None for launch in launches[:1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_split_sums_are_added_up_before_bias_and_activation(layout: str) -> None:
    rows, columns = (40 if layout.startswith("blocks") else 3), 640
    active = mask(layout, rows, columns, 0.95)
    dense = weight(active, torch.float32)
    packed = pack(dense, active, layout=layout)
    x, bias = normal(3, columns, dtype=torch.float32), normal(rows, dtype=torch.float32, seed=3)
    residual = normal(3, rows, dtype=torch.float32, seed=4)
    with recording() as launches:
        linear.forward(x, packed, bias, "relu", residual=residual)
    assert launches[0].arguments["SPLITS"] > 1
    assert launches[1].name == "combine_kernel"
    got = linear.forward(x, packed, bias, "relu", residual=residual)
    assert close(got, reference(x, dense, bias, "relu", residual), columns)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("name", "batch"), [("ROW_CONFIGS", 3), ("PANEL_CONFIGS", 70), ("GRADIENT_CONFIGS", 70)]
)
def test_every_configuration_gives_the_same(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = getattr(gather, name)
    assert len({config.name for config in configs}) == len(configs) > 1
    for layout in ("csr", "condensed"):
        active = mask(layout, 3, 100)
        dense = weight(active, torch.float32)
        packed = pack(dense, active, layout=layout)
        x, dy = normal(batch, 100, dtype=torch.float32), normal(batch, 3, dtype=torch.float32, seed=2)
        for config in configs:
            monkeypatch.setattr(gather, name, (config,))
            if name == "GRADIENT_CONFIGS":
                got = packed.dense(linear.weight_gradient(x, dy, packed))
                want = torch.where(active, dy.t().double() @ x.double(), 0).numpy()
                assert close(got, want, batch), config.name
            else:
                assert close(linear.forward(x, packed), reference(x, dense), 100), config.name


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(("layout", "batch"), [("blocks-64x32", 70), ("nm-1:4", 130)])
def test_larger_tiles_of_the_batch(layout: str, batch: int) -> None:
    active = mask(layout, 70, 96)
    dense = weight(active, torch.float16)
    packed = pack(dense, active, layout=layout)
    x = normal(batch, 96, dtype=torch.float16)
    dy = normal(batch, 70, dtype=torch.float16, seed=2)
    assert close(linear.forward(x, packed), reference(x, dense), 96)
    assert close(linear.input_gradient(dy, packed), reference(dy, dense.t().contiguous()), 70)


@pytest.mark.parametrize("columns", [40_000, 70_000])
def test_indices_of_16_and_of_32_bits(columns: int) -> None:
    active = torch.zeros(2, columns, dtype=torch.bool)
    active[0, [0, 32_767, 32_768, columns - 1]] = True
    active[1, 1:5] = True
    dense = weight(active, torch.float32)
    x = normal(2, columns, dtype=torch.float32)
    for layout in ("csr", "condensed"):
        packed = pack(dense, active, layout=layout)
        assert packed.columns.dtype == (torch.int16 if columns <= 1 << 16 else torch.int32)
        assert close(linear.forward(x, packed), reference(x, dense), 4)
        dy = normal(18, 2, dtype=torch.float32)
        gradient = packed.dense(linear.weight_gradient(normal(18, columns, dtype=torch.float32), dy, packed))
        assert int(gradient.count_nonzero()) == 8
        assert bool((gradient != 0).equal(active))


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("layout", ["csr", "condensed", "blocks-16x16"])
def test_a_weight_without_active_positions(layout: str) -> None:
    active = torch.zeros(6, 24, dtype=torch.bool)
    packed = pack(torch.zeros(6, 24), active, layout=layout)
    bias = normal(6, dtype=torch.float32)
    for batch in (2, 17):
        x, dy = normal(batch, 24, dtype=torch.float32), normal(batch, 6, dtype=torch.float32)
        assert linear.forward(x, packed, bias).equal(bias.expand(batch, 6))
        assert linear.input_gradient(dy, packed).equal(torch.zeros(batch, 24))
        assert linear.weight_gradient(x, dy, packed).numel() == 0


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("layout", ["csr", "nm-2:4"])
def test_leading_axes_views_and_empty_batches(layout: str) -> None:
    active = mask(layout, 6, 24)
    dense = weight(active, torch.float32)
    packed = pack(dense, active, layout=layout)
    x = normal(24, 3, 2, dtype=torch.float32).permute(2, 1, 0)
    want = reference(x.reshape(6, 24).contiguous(), dense).reshape(2, 3, 6)
    assert close(linear.forward(x, packed), want, 24)
    empty = torch.empty(2, 0, 24)
    assert linear.forward(empty, packed).shape == (2, 0, 6)
    assert linear.input_gradient(torch.empty(0, 6), packed).shape == (0, 24)
    assert not linear.weight_gradient(empty, torch.empty(2, 0, 6), packed).any()


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("batch", [2, 17])
@pytest.mark.parametrize("layout", ["csr", "condensed"])
def test_infinities_reach_only_the_outputs_that_use_them(layout: str, batch: int) -> None:
    active = mask(layout, 6, 24)
    dense = weight(active, torch.float32)
    x = normal(batch, 24, dtype=torch.float32)
    x[1, 5] = float("inf")
    got = linear.forward(x, pack(dense, active, layout=layout), activation="relu")
    assert got.isfinite()[0].all()
    assert (~got[1].isfinite()).equal(active[:, 5] & (dense[:, 5] > 0))
    x[1, 5] = float("nan")
    got = linear.forward(x, pack(dense, active, layout=layout), activation="relu")
    assert got[1].isnan().equal(active[:, 5])


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_values_at_the_old_positions(layout: str) -> None:
    active = mask(layout, 9, 40)
    old = pack(weight(active, torch.float32), active, layout=layout)
    dense = normal(9, 40, dtype=torch.float32, seed=9)
    packed = old.refreshed(dense)
    x, dy = normal(2, 40, dtype=torch.float32), normal(2, 9, dtype=torch.float32)
    assert close(linear.forward(x, packed), reference(x, dense * active), 40)
    assert close(linear.input_gradient(dy, packed), reference(dy, (dense * active).t().contiguous()), 9)
    assert not close(linear.forward(x, old), reference(x, dense * active), 40)


def test_values_of_another_type_than_the_input() -> None:
    active = mask("csr", 6, 24)
    dense = weight(active, torch.bfloat16)
    x = normal(2, 24, dtype=torch.float32)
    for layout in ("csr", "blocks-16x16"):
        got = linear.forward(x, pack(dense, layout=layout))
        assert got.dtype == torch.float32
        assert close(got, reference(x, dense), 24)
    gradient = linear.weight_gradient(x, normal(2, 6, dtype=torch.float32), pack(dense))
    assert gradient.dtype == torch.bfloat16
