"""What is known of a mask besides its bits: the kernels' plans, made once for each state of the mask.

A mask is looked up by the tensor itself and by its version, which every write to it raises. So an update of
the topology is noticed at the next call, and nothing is kept for masks that are gone.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sparsify.operators.gradients import KeptGradient
from sparsify.operators.threads import thread_count
from sparsify.runtime.training import ConvTopology, LinearTopology, Pair

Key = tuple[int, int]


@dataclass
class Cached:
    """A plan with the values that its latest forward pass gathered.

    Attributes:
        version: Of the mask that the plan is for.
        plan: The native plan, or the packed tensors on a GPU.
        geometry: Of a convolution: strides, padding, dilations.
        key: Address and version of the weight that `values` come from.
        values: In the plan's order.
        gradient: Memory of the weight's gradient.
    """

    version: int
    plan: Any
    geometry: tuple[Pair, ...] = ()
    key: Key | None = None
    values: Any = None
    gradient: KeptGradient = field(default_factory=KeptGradient)


_CACHE: MutableMapping[Tensor, Cached] = WeakIdKeyDictionary()


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode count no versions; they cannot be written to outside of it either.
    return -1 if tensor.is_inference() else tensor._version


def _cached(mask: Tensor, make: Any, geometry: tuple[Pair, ...] = ()) -> Cached:
    found = _CACHE.get(mask)
    if found is None or found.version != _version(mask) or found.geometry != geometry:
        found = Cached(_version(mask), make(), geometry)
        _CACHE[mask] = found
    return found


def _positions(mask: Tensor) -> Tensor:
    return mask.reshape(-1).nonzero().reshape(-1)


def native(mask: Tensor) -> Cached:
    """The native plan of a mask [out, in] on the CPU."""

    def make() -> LinearTopology:
        positions = _positions(mask)
        out_features, in_features = mask.shape
        return LinearTopology(
            out_features, in_features, positions.data_ptr(), len(positions), threads=thread_count()
        )

    return _cached(mask, make)


def native_conv(mask: Tensor, geometry: tuple[Pair, ...]) -> Cached:
    """The native plan of a mask [out, in, height, width] on the CPU, with strides, padding and dilations."""

    def make() -> ConvTopology:
        positions = _positions(mask)
        out, channels, height, width = mask.shape
        stride, padding, dilation = geometry
        return ConvTopology(
            (out, channels, height, width),
            stride,
            padding,
            dilation,
            positions.data_ptr(),
            len(positions),
            threads=thread_count(),
        )

    return _cached(mask, make, geometry)


def on_gpu(mask: Tensor, weight: Tensor) -> Cached:
    """The packed tensors of a mask [out, in] on a GPU, in the layout that the mask fills."""
    from sparsify.runtime.triton import packing

    return _cached(mask, lambda: packing.pack(weight, mask, layout=packing.layout_of(mask)))


def gathered(cached: Cached, weight: Tensor) -> Tensor:
    """The active values of the weight as it is now, on the CPU.

    Always read anew: a write through `.data` raises no version.
    """
    values = torch.empty(cached.plan.count, dtype=weight.dtype)
    cached.plan.gather(weight.data_ptr(), values.data_ptr(), thread_count())
    cached.key, cached.values = _key(weight), values
    return values


def refreshed(cached: Cached, weight: Tensor) -> Any:
    """The packed tensors with the values of the weight as it is now, on a GPU."""
    cached.key, cached.values = _key(weight), cached.plan.refreshed(weight)
    return cached.values


def of_forward(cached: Cached, weight: Tensor, read: Any) -> Any:
    """The values that the forward pass used: autograd has made sure that the weight is still as it was."""
    key, values = cached.key, cached.values
    return values if key is not None and key == _key(weight) else read(cached, weight)


def _key(weight: Tensor) -> Key:
    return weight.data_ptr(), _version(weight)
