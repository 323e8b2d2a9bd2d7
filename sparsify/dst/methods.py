"""The algorithms by the names that the command line gives them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn, optim

from sparsify.dst.base import Algorithm
from sparsify.dst.gmp import GMP
from sparsify.dst.group_lasso import GroupLasso
from sparsify.dst.rigl import RigL
from sparsify.dst.set import SET
from sparsify.dst.sparse_momentum import SparseMomentum
from sparsify.dst.srigl import SRigL
from sparsify.dst.static import Static
from sparsify.dst.wgsef import WGSEF
from sparsify.errors import UserError

METHODS: dict[str, type[Algorithm]] = {
    "static": Static,
    "set": SET,
    "rigl": RigL,
    "srigl": SRigL,
    "sparse-momentum": SparseMomentum,
    "gmp": GMP,
    "wgsef": WGSEF,
    "group-lasso": GroupLasso,
}


def method_options(method: str) -> tuple[str, ...]:
    """Names of the options of a method, besides the length of the run and the steps between updates.

    Raises:
        UserError: When there is no such method.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'; known are {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[method]).parameters.values()
    named = [entry.name for entry in parameters if entry.kind is inspect.Parameter.KEYWORD_ONLY]
    return tuple(name for name in named if name not in ("total_steps", "update_every"))


def make(
    method: str,
    model: nn.Module,
    optimizer: optim.Optimizer,
    *,
    total_steps: int,
    update_every: int,
    **options: Any,
) -> Algorithm:
    """An algorithm by its name.

    Args:
        method: A key of `METHODS`.
        model: The model to train.
        optimizer: Its optimizer.
        total_steps: Length of the run in optimizer steps.
        update_every: Steps between two updates.
        **options: Options of the method, as its class takes them.

    Raises:
        UserError: When the method has no such option, or refuses the model, the optimizer or a value.
    """
    known = method_options(method)
    for name in options:
        if name not in known:
            raise UserError(f"{method} has no option '{name}'; it has {', '.join(known)}")
    made: Any = METHODS[method]
    algorithm: Algorithm = made(
        model, optimizer, total_steps=total_steps, update_every=update_every, **options
    )
    return algorithm
