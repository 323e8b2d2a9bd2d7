"""A fluent tester: trace, plan, rewrite, then one check a line."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparsify.graph.facts import Facts, facts
from sparsify.graph.trace import trace
from sparsify.graph.traced import Traced
from sparsify.masks.state import masked_parameters
from sparsify.passes import rewrite
from sparsify.planning import Plan, plan
from tests.models import MODELS

BATCH, LENGTH = 3, 12


@functools.cache
def traced_model(name: str) -> tuple[nn.Module, Traced, Facts]:
    """Model, trace and facts; shared by all tests, which must leave them as they are."""
    entry = MODELS[name]
    model = entry.model()
    args, kwargs = entry.example(BATCH, LENGTH)
    traced = trace(model, args, kwargs)
    return model, traced, facts(traced)


def count_flops(model: nn.Module, name: str) -> int:
    """FLOPs of one forward pass at the example's shapes, as torch counts them.

    Attention runs as plain matrix products: torch does not count its fused kernel for CPUs.
    """
    args, kwargs = MODELS[name].example(BATCH, LENGTH)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(*args, **kwargs)
    return counter.get_total_flops()


class Rewriting:
    """One model on its way through the rewrite."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.traced, self.facts = traced_model(name)
        self.made: Plan
        self.result: torch.fx.GraphModule

    def plan(self, **options) -> Rewriting:
        self.made = plan(self.traced, facts=self.facts, **options)
        return self

    def rewrite(self, **options) -> Rewriting:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.result = rewrite(self.traced, self.made, facts=self.facts, **options)
        return self

    def outputs(self, batch: int = BATCH, length: int = LENGTH, seed: int = 1) -> list[Tensor]:
        torch.manual_seed(seed)
        args, kwargs = MODELS[self.name].example(batch, length)
        return [leaf for leaf in tree_leaves(self.result(*args, **kwargs)) if isinstance(leaf, Tensor)]

    def check(self, *properties: Callable[[Rewriting], None]) -> Rewriting:
        for each in properties:
            each(self)
        return self


def keeps_the_flops(case: Rewriting) -> None:
    """FLOPs counted by torch on both graphs, masked layers at the density of their masks, agree to 0.1 %."""
    spared = sum(
        (1 - masked_parameters(case.result)[layer.weight].density) * (layer.flops / layer.density)
        for layer in case.made.layers
        if layer.masked
    )
    dense, wide = count_flops(case.model, case.name), count_flops(case.result, case.name)
    assert spared > 0
    assert abs((wide - spared) / dense - 1) <= 1e-3


def counts_as_torch_does(case: Rewriting) -> None:
    """The planner's count of the dense model is torch's, to the operation."""
    assert case.made.flops.dense == count_flops(case.model, case.name)


def has_the_planned_masks(case: Rewriting) -> None:
    found = {fqn: int(entry.mask.sum()) for fqn, entry in masked_parameters(case.result).items()}
    assert found == {layer.weight: layer.nnz for layer in case.made.layers if layer.masked}
    for fqn, entry in masked_parameters(case.result).items():
        assert int(torch.count_nonzero(entry.param)) == found[fqn]


def has_the_planned_shapes(case: Rewriting) -> None:
    for layer in case.made.layers:
        assert tuple(case.result.get_parameter(layer.weight).shape) == layer.shape


def runs_at_other_sizes(case: Rewriting) -> None:
    for batch, length in ((2, 7), (5, 20)):
        outputs = case.outputs(batch, length)
        assert outputs and all(out.shape[0] == batch and bool(out.isfinite().all()) for out in outputs)


def trains(case: Rewriting) -> None:
    """Every masked weight gets a gradient, and only inside its mask."""
    sum(out.square().mean() for out in case.outputs()).backward()
    masked = masked_parameters(case.result)
    assert masked
    for entry in masked.values():
        assert entry.param.grad is not None
        assert bool(entry.param.grad.any()) and not bool(entry.param.grad[~entry.mask].any())
    case.result.zero_grad()


def survives_a_state_dict(case: Rewriting) -> None:
    other = copy.deepcopy(case.result)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    before = case.outputs()
    other.load_state_dict(case.result.state_dict())
    case.result, kept = other, case.result
    assert all(torch.equal(a, b) for a, b in zip(before, case.outputs(), strict=True))
    case.result = kept


def shares_nothing(case: Rewriting) -> None:
    given = {tensor.untyped_storage().data_ptr() for tensor in case.model.state_dict(keep_vars=True).values()}
    made = {tensor.untyped_storage().data_ptr() for tensor in case.result.state_dict(keep_vars=True).values()}
    assert made and not given & made
