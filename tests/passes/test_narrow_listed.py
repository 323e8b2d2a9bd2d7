"""Units that are listed go, and the difference is reported or judged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import ParityError, UserError
from tests.passes.narrowing import Narrowing, mlp


class TestListedUnits:
    def test_go_and_the_difference_is_reported(self):
        case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6)).narrow(units={"2.weight[1]": [0, 4]})
        assert case.removed == {"0.weight[0]": (0, 4)}
        assert case.result.meta["narrowing"].max_abs_error > 1e-3
        kept = [1, 2, 3, 5, 6, 7, 8, 9]
        assert torch.equal(case.result.get_submodule("2").weight, case.model[2].weight[:, kept])

    def test_are_all_that_goes(self):
        case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6)).change(
            lambda m: m[0].weight.index_fill_(0, torch.tensor([1, 2]), 0)
        )
        case.narrow(units={"0.weight[0]": [2]}, tolerance=1e-4).loses({"0.weight[0]": (2,)}).keeps_outputs()

    def test_are_refused_where_outputs_change_more_than_is_allowed(self):
        case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6))
        with pytest.raises(ParityError, match=r"where 0\.001 is allowed; list fewer units"):
            case.narrow(units={"0.weight[0]": [0]}, tolerance=1e-3)

    @pytest.mark.parametrize(
        ("units", "message"),
        [
            ({"1.weight[0]": [0]}, r"no width group '1\.weight\[0\]'"),
            ({"0.weight[0]": [10]}, "has units 0 to 9, not 10"),
            ({"0.weight[0]": [-1]}, "has units 0 to 9, not -1"),
            ({"0.weight[0]": list(range(10))}, "would lose all of its 10 units"),
            ({"4.weight[0]": [0]}, "width of a model output"),
        ],
    )
    def test_that_cannot_go_are_an_error(self, units, message):
        with pytest.raises(UserError, match=message):
            Narrowing(mlp(nn.GELU()), torch.randn(2, 6)).narrow(units=units)


class TestMultiples:
    @pytest.mark.parametrize(("multiple", "width"), [(1, 3), (2, 4), (4, 4), (8, 8), (16, 10), (7, 7)])
    def test_some_dead_units_stay_so_that_the_width_is_one(self, multiple, width):
        case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6)).change(
            lambda m: m[0].weight.index_fill_(0, torch.arange(3, 10), 0)
        )
        case.narrow(multiple_of=multiple).keeps_outputs()
        assert case.result.get_submodule("0").weight.shape[0] == width
        assert case.result.get_submodule("2").weight.shape[1] == width

    def test_widths_that_keep_all_their_units_stay(self):
        case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6)).narrow(multiple_of=7)
        assert case.removed == {}

    def test_below_one_is_an_error(self):
        with pytest.raises(UserError, match="multiple_of must be at least 1, not 0"):
            Narrowing(mlp(nn.GELU()), torch.randn(2, 6)).narrow(multiple_of=0)
