"""The least time that a GPU of given ceilings needs, from bytes and FLOPs alone. Nothing here is measured."""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmarks.gpu_kernels import KINDS
from sparsify.runtime.triton.gather import SMALL_BATCH


@dataclass(frozen=True)
class Device:
    """Ceilings of a GPU.

    Attributes:
        name: As its data sheet calls it.
        bandwidth: Bytes a second of device memory.
        tensor: Dense FLOP/s of the tensor cores by type.
        plain: FLOP/s of float32 outside the tensor cores, where the gathering kernels multiply.
        source: Where the figures are from.
    """

    name: str
    bandwidth: float
    tensor: dict[str, float]
    plain: float
    source: str


H100 = Device(
    name="H100 SXM",
    bandwidth=3.35e12,
    tensor={"float16": 989e12, "bfloat16": 989e12, "tf32": 494e12, "float32": 67e12},
    plain=67e12,
    source="NVIDIA H100 Tensor Core GPU data sheet; its tensor-core figures are with sparsity, halved here",
)


@dataclass(frozen=True)
class Layer:
    """A linear layer of W `[rows, columns]`, of which `density` is kept."""

    rows: int
    columns: int
    density: float


@dataclass(frozen=True)
class Bound:
    """What a product moves and multiplies at least.

    Attributes:
        size: Bytes read and written, each tensor once, transposed copies included.
        flops: Floating-point operations that are carried out.
        bytes_time: Seconds for the bytes.
        flops_time: Seconds for the FLOPs.
    """

    size: float
    flops: float
    bytes_time: float
    flops_time: float

    @property
    def seconds(self) -> float:
        """The least time."""
        return max(self.bytes_time, self.flops_time)

    @property
    def by(self) -> str:
        """What bounds it."""
        return "bytes" if self.bytes_time >= self.flops_time else "FLOPs"


def bytes_of(kind: str) -> int:
    """Bytes of a value."""
    return KINDS[kind][0].itemsize


def weight_bytes(layer: Layer, layout: str, kind: str) -> float:
    """Bytes that a forward product reads of the packed weight; `dense` for all of it."""
    kept = layer.rows * layer.columns * layer.density
    index = 2 if layer.columns <= 1 << 16 else 4
    if layout == "dense":
        return layer.rows * layer.columns * bytes_of(kind)
    if layout == "csr":
        return kept * (bytes_of(kind) + index) + 4 * (layer.rows + 1)
    if layout == "condensed":
        return kept * (bytes_of(kind) + index)
    if found := re.fullmatch(r"blocks-(\d+)x(\d+)", layout):
        R, C = int(found[1]), int(found[2])
        return kept * bytes_of(kind) + 4 * kept / (R * C) + 4 * (layer.rows // R + 1)
    return kept * bytes_of(kind) + kept / 4


def bound(device: Device, layer: Layer, layout: str, batch: int, kind: str) -> Bound:
    """The least time of a forward product.

    Args:
        device: Its ceilings.
        layer: Shape and density.
        layout: `dense`, a GPU layout, or `semi-structured` for 2:4 on sparse tensor cores.
        batch: Rows of X.
        kind: Type of inputs and weights, one of `KINDS`.
    """
    ends = batch * (layer.rows + layer.columns) * bytes_of(kind)
    gathered = layout in ("csr", "condensed")
    copies = 3 if gathered and batch > SMALL_BATCH else 1
    size = weight_bytes(layer, layout, kind) + copies * ends
    whole = 2.0 * batch * layer.rows * layer.columns
    # Packed n:m is multiplied as a dense tile; sparse tensor cores do half of that at the dense rate.
    carried = whole if layout == "dense" or layout.startswith("nm-") else whole * layer.density
    rate = device.plain if gathered else device.tensor[kind]
    return Bound(size, carried, size / device.bandwidth, carried / rate)
