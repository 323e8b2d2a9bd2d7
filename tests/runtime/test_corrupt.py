"""Damaged packed weights through Python and ONNX Runtime: an error, or the weight that they unpack to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsify.errors import SparsifyError
from sparsify.runtime import Session
from sparsify.runtime.layouts import LAYOUTS, Packed, pack_conv, pack_linear, unpack
from tests.runtime.graphs import masked, one_node, values

EPS = float(np.finfo(np.float32).eps)
EXTREMES = [0, 1, -1, 2, 7, 65535, 65536, 2**31 - 1, -(2**31)]
EXTENTS = [0, -1, 1, 2, 2**20, 2**31 - 1, 2**31, 2**62, -(2**63)]
TYPES = [np.float32, np.uint16, np.int32, np.int64, np.float64, np.uint8, np.float16]

Damage = Callable[[Packed], Packed]


def _with(packed: Packed, index: int, tensor: np.ndarray) -> Packed:
    tensors = list(packed.tensors)
    tensors[index % len(tensors)] = tensor
    return replace(packed, tensors=tuple(tensors))


def _tensor(packed: Packed, index: int) -> np.ndarray:
    return packed.tensors[index % len(packed.tensors)].copy()


def flip(index: int, position: int, bit: int) -> Damage:
    def damage(packed: Packed) -> Packed:
        tensor = _tensor(packed, index)
        if tensor.size:
            tensor.view(np.uint8)[position % tensor.nbytes] ^= np.uint8(1 << bit)
        return _with(packed, index, tensor)

    return damage


def put(index: int, position: int, value: int) -> Damage:
    def damage(packed: Packed) -> Packed:
        tensor = _tensor(packed, index)
        if tensor.size:
            tensor[position % tensor.size] = np.array(value).astype(tensor.dtype)
        return _with(packed, index, tensor)

    return damage


def resize(index: int, by: int) -> Damage:
    def damage(packed: Packed) -> Packed:
        tensor = _tensor(packed, index)
        return _with(packed, index, np.resize(tensor, max(0, tensor.size + by)).astype(tensor.dtype))

    return damage


def convert(index: int, kind: type[np.generic]) -> Damage:
    def damage(packed: Packed) -> Packed:
        with np.errstate(invalid="ignore", over="ignore"):
            return _with(packed, index, _tensor(packed, index).astype(kind))

    return damage


def swap(first: int, second: int) -> Damage:
    def damage(packed: Packed) -> Packed:
        one, other = _tensor(packed, first), _tensor(packed, second)
        return _with(_with(packed, first, other), second, one)

    return damage


def drop(index: int) -> Damage:
    def damage(packed: Packed) -> Packed:
        kept = [tensor for i, tensor in enumerate(packed.tensors) if i != index % len(packed.tensors)]
        return replace(packed, tensors=tuple(kept or packed.tensors))

    return damage


def claim(layout: str) -> Damage:
    return lambda packed: replace(packed, layout=layout, attributes=packed.attributes | {"layout": layout})


def reshape(axis: int, extent: int) -> Damage:
    """Another number of outputs or inputs, in the header too, so that the two agree."""

    def damage(packed: Packed) -> Packed:
        shape = list(packed.shape)
        shape[axis] = extent
        names = ("out_features", "in_features")
        changed = replace(packed, shape=tuple(shape), attributes=packed.attributes | {names[axis]: extent})
        return put(0, 2 + axis, extent)(changed) if packed.tensors[0].size == 8 else changed

    return damage


INDEX, POSITION = st.integers(0, 3), st.integers(0, 10_000)
DAMAGES = st.lists(
    st.one_of(
        st.builds(flip, INDEX, POSITION, st.integers(0, 7)),
        st.builds(put, INDEX, POSITION, st.sampled_from(EXTREMES)),
        st.builds(resize, INDEX, st.integers(-3, 3)),
        st.builds(convert, INDEX, st.sampled_from(TYPES)),
        st.builds(swap, INDEX, INDEX),
        st.builds(drop, INDEX),
        st.builds(claim, st.sampled_from([*LAYOUTS, "blocks-3", ""])),
        st.builds(reshape, st.integers(0, 1), st.sampled_from(EXTENTS)),
    ),
    max_size=3,
)
COMMON = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def _unpacked(packed: Packed) -> np.ndarray | None:
    """The dense weight, or None where it is refused with a reason."""
    try:
        return unpack(packed)
    except SparsifyError as error:
        assert len(str(error)) > 10
        return None


@settings(COMMON, max_examples=150)
@given(st.sampled_from(LAYOUTS), st.integers(0, 3), DAMAGES)
def test_a_damaged_linear_weight_is_refused_or_means_what_it_unpacks_to(layout, seed, damages):
    packed = pack_linear(masked((1 + 13 * seed, 9), 0.4, seed), layout=layout)
    for damage in damages:
        packed = damage(packed)
    weight = _unpacked(packed)
    try:
        session = Session(one_node(packed, ["n", None], tensors=packed.tensors), threads=1)
    except SparsifyError as error:
        assert "sparse" in str(error)
        assert weight is None
        return
    assert weight is not None
    for rows in (1, 20):
        x = values((rows, weight.shape[1]), rows)
        with np.errstate(all="ignore"):
            want = x.astype(np.float64) @ weight.T.astype(np.float64)
            size = np.abs(x).astype(np.float64) @ np.abs(weight.T).astype(np.float64)
            got = session.run({"x": x})["y"]
        plain = size < 1e30
        assert (np.abs(got - want)[plain] <= 16 * EPS * (size + 1e-30)[plain]).all()


@settings(COMMON, max_examples=80)
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(["kernel_shape", "strides", "pads", "dilations", "in_channels", "out_channels"]),
    st.integers(0, 3),
    st.sampled_from(EXTENTS),
)
def test_a_convolution_of_impossible_geometry_is_refused_or_runs(layout, name, position, extent):
    packed = pack_conv(masked((6, 3, 2, 2), 0.5), pads=(1, 0, 1, 0), layout=layout)
    attributes = dict(packed.attributes)
    if isinstance(attributes[name], int):
        attributes[name] = extent
    else:
        listed = list(attributes[name])
        listed[position % len(listed)] = extent
        attributes[name] = listed
    if name == "pads" and extent == 2**20:
        return  # possible, and large
    changed = replace(packed, attributes=attributes)
    try:
        session = Session(one_node(changed, ["n", None, "h", "w"]), threads=1)
        result = session.run({"x": values((2, 3, 5, 6))})["y"]
    except SparsifyError as error:
        assert len(str(error)) > 10
        assert attributes != packed.attributes
    else:
        assert np.isfinite(result).all()


def test_what_is_not_damaged_is_accepted():
    for layout in LAYOUTS:
        packed = pack_linear(masked((14, 9), 0.4), layout=layout)
        assert np.array_equal(_unpacked(packed), masked((14, 9), 0.4))
    with pytest.raises(SparsifyError, match="sparse"):
        Session(one_node(drop(3)(packed), ["n", 9], tensors=drop(3)(packed).tensors))
