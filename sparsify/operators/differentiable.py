"""What makes a torch operator with gradients of a sparse layer's kernels.

Each layer has two faces. Compiled graphs, exporters and transforms see a pair of custom operators. Eager
steps go through a plain autograd function, without the dispatcher, which takes 0.15 ms for every step of a
layer. There, gradients belong to autograd and the optimizer, which write to them through torch. So their
memory is kept; a compiled graph may use it for something else meanwhile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsify.masks import mark_inside
from sparsify.operators import native
from sparsify.operators.native import Gradients, Needs
from sparsify.runtime.training import Pair

Geometry = tuple[Pair, ...]


class SparseOperator(ABC):
    """A layer's product with weight ∘ mask and its gradients, registered as `sparsify::<name>`.

    Attributes:
        name: Of the operator; its gradients are `<name>_backward`.
        pairs: Names of the pairs of numbers that are the layer's geometry.
        channel: Dimension of the output that holds the weight's rows.
        forward: The custom operator (x, weight, mask, bias, *pairs).
        backward: The custom operator (dy, x, weight, mask, needs, *pairs); empty for what is not needed.
    """

    name: ClassVar[str]
    pairs: ClassVar[tuple[str, ...]] = ()
    channel: ClassVar[int]

    def __init__(self) -> None:
        tensors = "Tensor x, Tensor weight, Tensor mask"
        pairs = "".join(f", int[] {pair}" for pair in self.pairs)
        self.forward = torch.library.custom_op(
            f"sparsify::{self.name}",
            self._forward,
            mutates_args=(),
            schema=f"({tensors}, Tensor? bias{pairs}) -> Tensor",
        )
        self.backward = torch.library.custom_op(
            f"sparsify::{self.name}_backward",
            self._backward,
            mutates_args=(),
            schema=f"(Tensor dy, {tensors}, bool[] needs{pairs}) -> (Tensor, Tensor, Tensor)",
        )
        self.forward.register_fake(self._fake_forward)
        self.backward.register_fake(_fake_backward)
        self.forward.register_autograd(self._in_graph, setup_context=_save)

    def __call__(
        self, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: Geometry = ()
    ) -> Tensor:
        """The layer's output, differentiable once in x, weight and bias."""
        if native.untraced(x, weight, mask):
            run: Callable[..., Tensor] = _Eager.apply
            return run(self, x, weight, mask, bias, geometry)
        y: Tensor = self.forward(x, weight, mask, bias, *(list(pair) for pair in geometry))
        return y

    @abstractmethod
    def output_shape(self, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Any, ...]:
        """Sizes of the output, which may be symbols."""

    @abstractmethod
    def product(
        self, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        """The output."""

    @abstractmethod
    def active_gradients(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        needs: Needs,
        geometry: Geometry,
        keep: bool,
    ) -> Gradients:
        """The gradients, that of the weight at active positions only.

        That of the bias may be left out where it does not come with the weight's. `keep` as in
        `native.backward`.
        """

    @abstractmethod
    def dense_gradient(self, dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """All of the weight's gradient."""

    def gradients(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        needs: Needs,
        geometry: Geometry,
        keep: bool,
    ) -> Gradients:
        """The gradients of x, weight and bias, None where they are not needed.

        That of the weight is marked as zero outside the mask, or dense while a dynamic method collects it.
        """
        need_x, need_weight, need_bias = needs
        dense = need_weight and native.collected(weight)
        active = (need_x, need_weight and not dense, need_bias)
        dx, dweight, dbias = self.active_gradients(dy, x, weight, mask, active, geometry, keep)
        if dense:
            dweight = self.dense_gradient(dy, x, weight, geometry)
        elif dweight is not None:
            mark_inside(dweight)
        if need_bias and dbias is None:
            dbias = dy.movedim(self.channel, -1).reshape(-1, weight.shape[0]).sum(0)
        return dx, dweight, dbias

    def _forward(self, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *pairs: Any) -> Tensor:
        return self.product(x, weight, mask, bias, _geometry(pairs))

    def _backward(
        self, dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: list[bool], *pairs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_x, need_weight, need_bias = needs
        asked = (need_x, need_weight, need_bias)
        return native.filled(self.gradients(dy, x, weight, mask, asked, _geometry(pairs), keep=False), x)

    def _fake_forward(
        self, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *pairs: Any
    ) -> Tensor:
        return x.new_empty(self.output_shape(x, weight, _geometry(pairs)))

    def _in_graph(self, ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needs = _needs(ctx.needs_input_grad)
        found = self.backward(dy, *ctx.saved_tensors, list(needs), *ctx.pairs)
        dx, dweight, dbias = (gradient if need else None for gradient, need in zip(found, needs, strict=True))
        return dx, dweight, None, dbias, *(None for _ in ctx.pairs)


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: list[bool], *pairs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    return (
        x.new_empty(x.shape if need_x else 0),
        x.new_empty(weight.shape if need_weight else 0),
        x.new_empty(weight.shape[:1] if need_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.pairs = inputs[4:]


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        operator: SparseOperator,
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.operator, ctx.geometry = operator, geometry
        return operator.product(x, weight, mask, bias, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        needs = _needs(ctx.needs_input_grad[1:])
        dx, dweight, dbias = ctx.operator.gradients(dy, *ctx.saved_tensors, needs, ctx.geometry, keep=True)
        return None, dx, dweight, None, dbias, None


def _needs(flags: tuple[bool, ...]) -> Needs:
    """Of x, weight, mask and bias, the mask has no gradient."""
    return bool(flags[0]), bool(flags[1]), bool(flags[3])


def _geometry(pairs: tuple[list[int], ...]) -> Geometry:
    return tuple((first, second) for first, second in pairs)
