"""Standard nodes on the way into and out of a sparse operator.

A sparse operator takes float32 with its inputs in the last axis (linear) or in the second of four (conv).
What comes in another form is brought into it: float16 by Cast, one-dimensional signals by an axis of size 1,
a transposed input by Transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from sparsify.lowering.graph import Dim, Shape

_FLOAT, _HALF = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)


@dataclass(frozen=True)
class Step:
    """One node with one run-time input.

    Attributes:
        op: Unsqueeze, Squeeze, Transpose, Reshape or Cast.
        numbers: Its axes (ascending, none negative), permutation, target shape, or element type.
    """

    op: str
    numbers: tuple[int, ...]


TO_FLOAT = Step("Cast", (_FLOAT,))
TO_HALF = Step("Cast", (_HALF,))


def inverse(steps: Sequence[Step]) -> tuple[Step, ...] | None:
    """The steps that undo `steps`, or None where one of them cannot be undone without knowing sizes."""
    undone: list[Step] = []
    for step in reversed(steps):
        if step.op == "Reshape":
            return None
        if step.op == "Cast":
            undone.append(TO_FLOAT if step.numbers[0] == _HALF else TO_HALF)
        elif step.op == "Transpose":
            undone.append(Step("Transpose", tuple(int(axis) for axis in np.argsort(step.numbers))))
        else:
            undone.append(Step("Squeeze" if step.op == "Unsqueeze" else "Unsqueeze", step.numbers))
    return tuple(undone)


def shape_after(steps: Sequence[Step], shape: Shape | None) -> Shape | None:
    """Shape of a value of the given shape after the steps, None where it is unknown."""
    for step in steps:
        if shape is None:
            return None
        if step.op == "Unsqueeze":
            grown = list(shape)
            for axis in step.numbers:
                grown.insert(axis, 1)
            shape = tuple(grown)
        elif step.op == "Squeeze":
            shape = tuple(dim for axis, dim in enumerate(shape) if axis not in step.numbers)
        elif step.op == "Transpose":
            shape = tuple(shape[axis] for axis in step.numbers)
        elif step.op == "Reshape":
            shape = _reshaped(shape, step.numbers)
    return shape


def type_after(steps: Sequence[Step], element: int) -> int:
    """Element type (onnx.TensorProto number) of a value after the steps."""
    casts = [step.numbers[0] for step in steps if step.op == "Cast"]
    return casts[-1] if casts else element


def _reshaped(shape: Shape, target: Sequence[int]) -> Shape:
    known = math.prod(size for size in target if size > 0)
    sizes = [dim for dim in shape if isinstance(dim, int)]
    rest: Dim = math.prod(sizes) // known if len(sizes) == len(shape) else None
    return tuple(rest if size < 0 else size for size in target)
