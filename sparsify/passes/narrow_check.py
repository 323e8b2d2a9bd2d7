"""Compares a model with its narrowed form on random inputs, in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from sparsify.errors import ParityError
from sparsify.graph.traced import Traced
from sparsify.graph.two_widths import example_inputs

TOLERANCE = 1024 * torch.finfo(torch.float32).eps
"""Largest difference, as a share of an output's largest magnitude: sums in another order explain it."""

_DRAWS = 2
_SMALLEST_SCALE = 1e-3
_WRONG = 0.01  # integers, such as places of maxima: a share that may differ where values tie


def difference(traced: Traced, narrowed: nn.Module, seed: int = 0) -> tuple[float, float]:
    """Largest differences of any output on random inputs.

    Args:
        traced: The model, with example inputs.
        narrowed: Its narrowed form.
        seed: Seed of the inputs.

    Returns:
        The largest absolute difference, and the largest as a share of its output's largest magnitude.

    Raises:
        ParityError: An output is infinite or not a number in one form only, or there is nothing to compare.
    """
    generator = torch.Generator().manual_seed(seed)
    absolute = relative = 0.0
    compared = 0
    with torch.no_grad(), _evaluating(traced.module), _evaluating(narrowed):
        for _ in range(_DRAWS):
            args, kwargs = _random_inputs(traced, generator)
            expected = tree_leaves(traced.module(*args, **kwargs))
            actual = tree_leaves(narrowed(*args, **kwargs))
            for place, (one, other) in enumerate(zip(expected, actual, strict=True)):
                if isinstance(one, Tensor) and one.numel():
                    worst, scale = _compare(one, other, place)
                    absolute, relative = max(absolute, worst), max(relative, worst / scale)
                    compared += 1
    if not compared:
        raise ParityError("narrow: the model returns no tensor that could be compared")
    return absolute, relative


def allowed(traced: Traced, tolerance: float | None) -> float:
    """The tolerance that was asked for, else what rounding explains in the model's least precise type."""
    if tolerance is not None:
        return tolerance
    kinds = [p.dtype for p in traced.module.parameters() if p.is_floating_point()]
    return max([TOLERANCE, *(16 * torch.finfo(kind).eps for kind in kinds if kind.itemsize < 4)])


def _compare(one: Tensor, other: Tensor, place: int) -> tuple[float, float]:
    if one.shape != other.shape:
        raise ParityError(
            f"narrow: output {place} has shape {tuple(other.shape)}, expected {tuple(one.shape)}"
        )
    if not one.is_floating_point():
        wrong = float((one != other).double().mean())
        return (wrong if wrong > _WRONG else 0.0), 1.0
    one, other = one.double(), other.double()
    finite = torch.isfinite(one)
    if not torch.equal(finite, torch.isfinite(other)):
        raise ParityError(f"narrow: output {place} differs in where it is infinite or not a number")
    if not bool(finite.any()):
        raise ParityError(
            f"narrow: output {place} has no finite entry on random inputs, which proves nothing; pass args="
        )
    one, other = one[finite], other[finite]
    worst = float((one - other).abs().max())
    scale = max(_SMALLEST_SCALE, float(one.abs().max()))
    if not math.isfinite(worst):
        raise ParityError(f"narrow: output {place} cannot be compared, its values overflow")
    return worst, scale


def _random_inputs(traced: Traced, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the example's shapes; integers that name rows of a table are drawn among its rows."""
    drawn = {
        node: _random(traced.module, node, example, generator) for node, example in example_inputs(traced)
    }
    leaves, spec = tree_flatten((traced.args, traced.kwargs))
    by_identity = {id(example): drawn[node] for node, example in example_inputs(traced)}
    args, kwargs = tree_unflatten([by_identity.get(id(leaf), leaf) for leaf in leaves], spec)
    return args, kwargs


def _random(module: GraphModule, node: Node, example: Any, generator: torch.Generator) -> Any:
    if not isinstance(example, Tensor):
        return example
    if example.is_floating_point():
        values = torch.randn(example.shape, generator=generator)
        return values.to(device=example.device, dtype=example.dtype)
    rows = [_rows(module, user) for user in node.users]
    tables = [count for count in rows if count is not None]
    if tables:
        values = torch.randint(min(tables), tuple(example.shape), generator=generator)
        return values.to(device=example.device, dtype=example.dtype)
    return example if bool(example.any()) else torch.ones_like(example)


def _rows(module: GraphModule, user: Node) -> int | None:
    if user.op != "call_module":
        return None
    table = module.get_submodule(str(user.target))
    return int(table.num_embeddings) if isinstance(table, nn.Embedding) else None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
