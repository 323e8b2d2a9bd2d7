"""Brings recorded symbolic sizes up to date from the numbers that they are on the example.

A recorded size is a constant, or a product of run-time symbols with one, such as 64·s0. Rewriting changes the
constant only: where the size on the example went from 64·2 to 96·2, it is 96·s0 now. That costs a
multiplication; running an operator on symbolic sizes costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


class NotRescalableError(Exception):
    """A size is no product of run-time symbols, or was not recorded at all."""


class Rescaler:
    """Makes recorded values of other sizes.

    Args:
        mode: Mode of the recorded fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._made: dict[tuple[Any, int], SymInt] = {}
        # The layers of a model repeat a few shapes, and a fake tensor of symbolic sizes takes a millisecond.
        self._tensors: dict[Any, Tensor] = {}

    def example(self, recorded: Any) -> Any:
        """A recorded input with the sizes that it has on the example.

        Args:
            recorded: A fake tensor, a symbolic or plain number, or anything else.
        """
        if isinstance(recorded, Tensor):
            sizes = [_hint(size) for size in recorded.shape]
            return torch.empty(sizes, dtype=recorded.dtype, device="meta")
        return _hint(recorded) if isinstance(recorded, SymInt) else recorded

    def refresh(self, meta: dict[str, Any], computed: Any) -> bool:
        """Brings a node's recorded value up to date.

        Args:
            meta: The node's `meta`; `val` is replaced where it changed.
            computed: What the node computes on the example, on the meta device.

        Returns:
            Whether it could be done.
        """
        try:
            meta["val"] = self._value(meta["val"], computed)
        except NotRescalableError:
            return False
        return True

    def _value(self, recorded: Any, computed: Any) -> Any:
        if isinstance(computed, Tensor):
            return self._tensor(recorded, computed)
        if isinstance(computed, (list, tuple)):
            if not isinstance(recorded, (list, tuple)) or len(recorded) != len(computed):
                raise NotRescalableError
            return type(computed)(map(self._value, recorded, computed))
        if (
            isinstance(computed, int)
            and not isinstance(computed, bool)
            and isinstance(recorded, (int, SymInt))
        ):
            return self._size(recorded, computed)
        if type(recorded) is not type(computed):
            raise NotRescalableError
        return computed

    def _tensor(self, recorded: Any, computed: Tensor) -> Tensor:
        if not isinstance(recorded, Tensor) or recorded.ndim != computed.ndim:
            raise NotRescalableError
        before = tuple(recorded.shape)
        sizes = [self._size(old, new) for old, new in zip(before, computed.shape, strict=True)]
        same = all(new is old for new, old in zip(sizes, before, strict=True))
        if same and recorded.dtype == computed.dtype:
            return recorded
        strides = self._strides(sizes, computed)
        outline = tuple(map(_expression, (*sizes, *strides)))
        key = (outline, computed.dtype, recorded.device)
        if key not in self._tensors:
            with self._mode:
                made = torch.empty_strided(sizes, strides, dtype=computed.dtype, device=recorded.device)
            self._tensors[key] = made
        return self._tensors[key]

    def _strides(self, sizes: Sequence[int | SymInt], computed: Tensor) -> list[int | SymInt]:
        """Strides of a tensor without gaps whose dimensions lie in the order of the computed one's."""
        strides: list[int | SymInt] = [0] * len(sizes)
        length, present = sympy.Integer(1), 1
        order = sorted(range(len(sizes)), key=lambda axis: (computed.stride(axis), -axis))
        for axis in order:
            if computed.stride(axis):
                strides[axis] = self._symbolic(length, present)
                length, present = length * _expression(sizes[axis]), present * computed.shape[axis]
        return strides

    def _size(self, recorded: int | SymInt, computed: int) -> int | SymInt:
        if not isinstance(recorded, SymInt):
            return recorded if recorded == computed else computed
        present = _hint(recorded)
        if present == computed:
            return recorded
        scaled = _expression(recorded) * sympy.Rational(computed, present)
        coefficient, _ = scaled.as_coeff_Mul()
        if scaled.is_Add or not coefficient.is_Integer:
            raise NotRescalableError
        return self._symbolic(scaled, computed)

    def _symbolic(self, expression: Any, present: int) -> int | SymInt:
        if expression.is_number:
            return int(expression)
        made = self._made.get((expression, present))
        if made is None:
            shapes = self._mode.shape_env
            if shapes is None:
                raise NotRescalableError
            made = self._made[(expression, present)] = shapes.create_symintnode(expression, hint=present)  # type: ignore[assignment]
        return made  # type: ignore[return-value]


def _expression(size: int | SymInt) -> Any:
    return size.node.expr if isinstance(size, SymInt) else sympy.Integer(size)


def _hint(size: int | SymInt) -> int:
    if not isinstance(size, SymInt):
        return size
    if not size.node.has_hint():
        raise NotRescalableError
    return int(size.node.hint)
