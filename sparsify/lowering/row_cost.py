"""What convolutions cost whose maps a chain keeps as rows of pixels (docs/design/conv-chains.md).

Sixteen pixels of a row of output cost `output` for each output channel and `entry` for each stored entry or
block, with the numbers of `kernel_costs`. Nothing is packed, so there is nothing else; what a row lacks to a
multiple of sixteen pixels is computed in vain. Maps that enter or leave a chain are copied.
"""

from __future__ import annotations

import math

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.cost import Machine
from sparsify.runtime import layouts

_GROUP = 16
_FILLED = 0.8
"""Share of a row that pixels fill, at least."""


def time_on_rows(
    candidate: Candidate,
    widths: tuple[int, int],
    rows: int,
    machine: Machine,
    *,
    layout: str = "csr",
    stored: int | None = None,
    planes: tuple[bool, bool] = (False, False),
) -> float:
    """Estimated ns, on one thread, of a convolution inside a chain whose maps are kept as rows.

    Args:
        candidate: A matched convolution.
        widths: Width of its input and of its output.
        rows: Of its output, all images together.
        machine: Instruction set.
        layout: A packed layout.
        stored: Entries that the layout stores; those of the weight if not given.
        planes: Whether its input comes from outside the chain, and its output goes there.

    Returns:
        Infinity where rows do not suit it, or were not measured with these instructions.
    """
    kernel, geometry = machine.costs.rows, candidate.geometry
    before, after = widths
    if kernel is None or geometry is None or layout not in kernel.entry:
        return math.inf
    stride = geometry.strides[1]
    if stride not in (1, 2) or after != -(-before // stride) or after < _FILLED * _row_spacing(after):
        return math.inf
    entries = layouts.stored(candidate.weight, layout) if stored is None else stored
    blocks = entries / layouts.block_rows(layout)
    groups = rows * -(-after // _GROUP)
    outputs, inputs = candidate.weight.shape[:2]
    pixels = math.prod(geometry.strides)  # of input for one of output
    edges = kernel.edge * (inputs * pixels * planes[0] + outputs * planes[1])
    return float(groups * (kernel.output * outputs + kernel.entry[layout] * blocks + edges))


def _row_spacing(width: int) -> int:
    """Floats of a row of a map with the zeros behind it, one at least."""
    return (width + _GROUP) // _GROUP * _GROUP
