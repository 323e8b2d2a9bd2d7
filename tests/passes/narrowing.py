"""A fluent tester: kill units, narrow, then check what came out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sparsify
from sparsify.errors import Refusal


class Narrowing:
    """One model on its way through `narrow`."""

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.model, self.args, self.kwargs = model.eval(), args, kwargs
        self.traced: Any = None
        self.result: Any = None

    def change(self, edit: Callable[[Any], object]) -> Narrowing:
        """Writes to the model, which must change its outputs or leave them: no matter."""
        with torch.no_grad():
            edit(self.model)
        return self

    def narrow(self, **options: Any) -> Narrowing:
        """Narrows a trace that is made once: it shares the model's parameters, later changes included."""
        if self.traced is None:
            self.traced = sparsify.trace(self.model, self.args, self.kwargs)
        self.result = sparsify.narrow(self.traced, **options)
        return self

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """Units taken out, by group, groups that lost none left out."""
        return {group.id: group.removed for group in self.result.meta["narrowing"].groups if group.removed}

    @property
    def refusals(self) -> dict[str, Refusal]:
        return {refusal.fqn: refusal for refusal in self.result.meta["narrowing"].refusals}

    def loses(self, expected: dict[str, tuple[int, ...]]) -> Narrowing:
        """Exactly these units went."""
        assert self.removed == expected
        return self

    def keeps_outputs(self, batch: int = 5) -> Narrowing:
        """Outputs are those of the model, on inputs of another batch size that `narrow` has not seen."""
        torch.manual_seed(7)
        args = tuple(_another(value, batch) for value in self.args)
        kwargs = {name: _another(value, batch) for name, value in self.kwargs.items()}
        with torch.no_grad():
            expected = [x for x in tree_leaves(self.model(*args, **kwargs)) if isinstance(x, Tensor)]
            actual = [x for x in tree_leaves(self.result.eval()(*args, **kwargs)) if isinstance(x, Tensor)]
        assert expected and len(expected) == len(actual)
        for one, other in zip(expected, actual, strict=True):
            scale = float(one.abs().max())
            assert scale > 1e-3, "outputs say nothing"
            torch.testing.assert_close(other, one, rtol=0, atol=2e-5 * max(1.0, scale))
        return self

    def is_smaller(self) -> Narrowing:
        before, after = self.result.meta["narrowing"].parameters
        assert after == sum(p.numel() for p in self.result.parameters()) < before
        assert self.result.meta["narrowing"].flops[1] < self.result.meta["narrowing"].flops[0]
        return self


def _another(value: Any, batch: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(batch, *value.shape[1:])
    return value[torch.randint(value.shape[0], (batch,))]


def untouched(case: Narrowing, edit: Callable[[], object]) -> None:
    """Whatever `edit` does leaves the given model's parameters as they were."""
    before = copy.deepcopy(case.model.state_dict())
    edit()
    after = case.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def mlp(activation: nn.Module, features: int = 6, width: int = 10, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(features, width, bias=bias), activation, nn.Linear(width, width, bias=bias)]
    return nn.Sequential(*layers, activation, nn.Linear(width, 3, bias=bias))
