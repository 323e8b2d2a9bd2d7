"""What dense products and sparse kernels cost, by instruction set and layout: the numbers behind `cost`.

Only ratios of these decide, and they carry over between machines of one instruction set better than times do.

Where they come from: one thread of a 2.5 GHz AVX-512 server core with two FMA units (avx512-deep: a newer one
with AMX at 3.2 to 3.8 GHz), float32, beside ONNX Runtime 1.31 in the same process and in alternating blocks.

- avx512: `python -m benchmarks.kernel_costs`, 420 comparisons of 20 layers in every layout (convolutions in
  blocks of 8 stand between 4 and 16), densities 0.1, 0.25, 0.5: docs/results/cpu/kernel_costs.json. Met to
  13 % (linear) and 17 % (convolutions, root mean square of the logarithm). A threshold of 1.15 makes 351
  sparse, the slowest 1.08× as fast as dense, and leaves 42 dense that would gain a tenth or more.
- avx512-deep, for CPUs that kernels are tuned for as deep (docs/design/tuning.md): the same measurements
  there, docs/results/cpu-amx/kernel_costs.json. Met to 17 %; 371 become sparse, the slowest 1.08× as fast as
  dense, and 21 stay dense that would gain 15 % or more. Rows: chains of three and four convolutions on maps
  of 56², 28² and 14² at densities 0.1 to 0.3, met within a fifth; `edge` stays, as only in a network do outer
  maps come from far. Two threads: kernels kept 0.65 to 1.5 of what dense products gained, 0.85 and more
  nearly wherever the work took 0.1 ms.
- avx512 and avx2, convolutions on rows: the 18 shapes of ResNet-50's first three stages at densities 0.1 and
  0.2, every layout: 36 times each, met within a sixth.
- avx2: 3072→768 at density 0.1 and 512→512 at 0.25, 1, 4, 16 and 128 rows, and convolutions, with the AVX2
  kernels forced, of an earlier version. ONNX Runtime cannot be made to leave AVX-512 out, so the dense rate
  is guessed, on the high side. Panels of fewer than 16 columns cost as much as 16.
- scalar: three shapes. neon was not measured: AVX2's numbers at half the width, the ratio to dense the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STEP = 0.5
"""ns an element of a node around the sparse one that brings float16, or a transposed input, into its form."""

CONVERT = 0.4
"""ns an element that goes from ONNX Runtime's blocks of channels to plain NCHW, or back."""

FAR = 24 << 20
"""Bytes of a convolution's input and output beyond which they come from memory."""

FAR_PACK = 3.0
"""What packing and storing cost there, over what they cost from a cache: planes lie on pages of their own."""

FORK = 3e3
"""ns that a product on several threads costs to be handed out and gathered, dense or sparse."""

CHAIN_STEP = 2e3
"""ns that a convolution inside a chain costs whatever its size, in place of a node's call."""


@dataclass(frozen=True)
class Kernel:
    """What one sparse kernel costs on one thread.

    Attributes:
        call: ns that a node costs whatever its size.
        pack: ns an element of input or output that is brought into panels and back.
        rate: FLOP/ns of stored entries on many columns.
        half: Columns at which half of that is reached.
        group: Columns come in groups of so many; a group that is not full costs as much as a full one.
    """

    call: float
    pack: float
    rate: float
    half: float
    group: int = 1


@dataclass(frozen=True)
class RowKernel:
    """What a convolution on maps kept as rows costs on one thread (see docs/design/conv-chains.md).

    Attributes:
        output: ns for each output and sixteen pixels.
        entry: ns for each stored entry, or block of them, and sixteen pixels, by layout.
        edge: ns for each channel and sixteen pixels of a map that enters the chain or leaves it.
    """

    output: float
    entry: Mapping[str, float]
    edge: float = 12.0


@dataclass(frozen=True)
class Memory:
    """How fast weights are read that are used once, in bytes/ns.

    Attributes:
        far: From the last cache or memory.
        near: From the second cache.
        kept: Bytes of weights that stay in the second cache, at most.
    """

    far: float = 22.0
    near: float = 38.0
    kept: int = 1 << 20

    def read(self, size: float) -> float:
        """ns that reading a weight of so many bytes takes."""
        return size / (self.near if size <= self.kept else self.far)


@dataclass(frozen=True)
class InstructionSet:
    """Costs on CPUs of one instruction set.

    Attributes:
        dense: FLOP/ns of ONNX Runtime's matrix products and convolutions.
        linear: Kernel of each layout for linear layers.
        conv: Kernel of each layout for convolutions.
        rows: Convolutions on rows inside chains; None where they were not measured.
        memory: Where weights come from.
        evenness: Share of the threads' work that sparse kernels make use of, relative to dense ones, from two
            threads on.
    """

    dense: float
    linear: Mapping[str, Kernel]
    conv: Mapping[str, Kernel]
    rows: RowKernel | None = None
    memory: Memory = Memory()
    evenness: float = 0.85


def _kernels(
    call: float, pack: float, rates: Mapping[str, tuple[float, float]], group: int = 1
) -> Mapping[str, Kernel]:
    return {layout: Kernel(call, pack, rate, half, group) for layout, (rate, half) in rates.items()}


COSTS: Mapping[str, InstructionSet] = {
    "avx512": InstructionSet(
        dense=134.0,
        linear=_kernels(
            3.6e3,
            0.275,
            {
                "csr": (111.0, 14.0),
                "blocks-2": (123.0, 17.0),
                "blocks-4": (171.0, 17.5),
                "blocks-8": (159.0, 12.0),
                "blocks-16": (145.0, 7.0),
            },
        ),
        conv=_kernels(
            9.7e3,
            0.21,
            {
                "csr": (98.0, 10.0),
                "blocks-2": (123.0, 15.0),
                "blocks-4": (135.0, 8.0),
                "blocks-8": (130.0, 7.5),
                "blocks-16": (124.0, 7.0),
            },
        ),
        rows=RowKernel(
            3.5, {"csr": 0.45, "blocks-2": 0.73, "blocks-4": 1.2, "blocks-8": 2.3, "blocks-16": 4.6}
        ),
    ),
    "avx512-deep": InstructionSet(
        dense=167.0,
        linear=_kernels(
            2.5e3,
            0.197,
            {
                "csr": (121.0, 8.4),
                "blocks-2": (152.0, 13.5),
                "blocks-4": (183.0, 9.2),
                "blocks-8": (195.0, 5.2),
                "blocks-16": (175.0, 2.8),
            },
        ),
        conv=_kernels(
            3.8e3,
            0.108,
            {
                "csr": (110.0, 10.1),
                "blocks-2": (146.0, 10.9),
                "blocks-4": (154.0, 4.3),
                "blocks-8": (149.0, 4.5),
                "blocks-16": (144.0, 4.7),
            },
        ),
        rows=RowKernel(
            6.4,
            {"csr": 0.28, "blocks-2": 0.46, "blocks-4": 0.73, "blocks-8": 1.5, "blocks-16": 3.0},
        ),
        memory=Memory(28.0, 96.0, 3 << 19),
        evenness=0.9,
    ),
    "avx2": InstructionSet(
        dense=85.0,
        linear=_kernels(
            4e3,
            0.40,
            {
                "csr": (55.0, 4.0),
                "blocks-2": (54.0, 2.0),
                "blocks-4": (57.0, 0.0),
                "blocks-8": (56.0, 0.0),
                "blocks-16": (53.0, 0.0),
            },
            group=16,
        ),
        conv=_kernels(
            10e3,
            0.30,
            {
                "csr": (52.0, 4.0),
                "blocks-2": (54.0, 2.0),
                "blocks-4": (50.0, 0.0),
                "blocks-8": (46.0, 0.0),
                "blocks-16": (44.0, 0.0),
            },
            group=16,
        ),
        rows=RowKernel(
            5.0, {"csr": 0.69, "blocks-2": 1.3, "blocks-4": 2.6, "blocks-8": 4.9, "blocks-16": 9.5}
        ),
    ),
    "neon": InstructionSet(
        dense=42.0,
        linear=_kernels(4e3, 0.60, {"csr": (27.0, 4.0), "blocks-4": (27.0, 0.0)}, group=16),
        conv=_kernels(10e3, 0.50, {"csr": (29.0, 4.0), "blocks-4": (29.0, 0.0)}, group=16),
    ),
    "scalar": InstructionSet(
        dense=30.0,
        linear=_kernels(4e3, 1.0, {"csr": (5.0, 3.0), "blocks-4": (5.0, 3.0)}),
        conv=_kernels(10e3, 1.0, {"csr": (5.0, 3.0), "blocks-4": (5.0, 3.0)}),
    ),
}
"""Costs by the kernel table's names. A set that is not in it is taken for `scalar`, so it stays dense."""
