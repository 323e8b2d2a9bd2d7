"""The matrix that patterns see in a weight: one row an output, inputs innermost, kernel positions outside."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def to_matrix(weight: Tensor) -> Tensor:
    """Turns (outputs, inputs, *kernel) into (outputs, kernel · inputs), a view where memory allows it.

    Column `position · inputs + i` is input i at one kernel position, so that neighbours in a row are
    neighbouring input channels.
    """
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Undoes `to_matrix`: returns a contiguous tensor of the weight's shape."""
    outputs, inputs, *kernel = shape
    return matrix.reshape(outputs, *kernel, inputs).movedim(-1, 1).contiguous()


def column(index: int, shape: Sequence[int]) -> str:
    """Says which input, and at which kernel position, a column of the matrix stands for."""
    inputs, kernel = shape[1], shape[2:]
    position, channel = divmod(index, inputs)
    if not kernel:
        return f"input {channel}"
    where = []
    for extent in reversed(kernel):
        position, offset = divmod(position, extent)
        where.append(str(offset))
    return f"input {channel} at kernel position ({', '.join(reversed(where))})"
