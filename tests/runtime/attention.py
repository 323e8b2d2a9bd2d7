"""Attention in NumPy and in the native library, and models of one node."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from sparsify.runtime import library
from tests.runtime.graphs import DOMAIN
from tests.runtime.native import _address, _check


class Call(ctypes.Structure):
    """`sparsify_attention_call` of the C ABI."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("queries", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("key_size", ctypes.c_int64),
        ("value_size", ctypes.c_int64),
        ("bias_shape", ctypes.c_int64 * 4),
        ("scale", ctypes.c_float),
        ("causal", ctypes.c_int32),
        ("nan_guard", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def operands(
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    size: int,
    *,
    kv_heads: int | None = None,
    value_size: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard normal q, k and v."""
    rng = np.random.default_rng(seed)
    kv = kv_heads or heads
    shapes = (
        (batch, queries, heads * size),
        (batch, keys, kv * size),
        (batch, keys, kv * (value_size or size)),
    )
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return q, k, v


def run(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    num_heads: int,
    scale: float,
    kv_num_heads: int | None = None,
    causal: bool = False,
    nan_guard: bool = False,
    kernel: str | None = None,
    threads: int = 1,
    guard: int = 64,
) -> np.ndarray:
    """The native kernel, with sentinels around the output that must survive."""
    kv = kv_num_heads or num_heads
    shape = (1,) * (4 - bias.ndim) + bias.shape if bias is not None else (1, 1, 1, 1)
    value_size = v.shape[2] // kv
    call = Call(
        *(q.shape[0], q.shape[1], k.shape[1], num_heads, kv, q.shape[2] // num_heads, value_size),
        (ctypes.c_int64 * 4)(*shape),
        *(scale, causal, nan_guard, threads),
    )
    size = q.shape[0] * q.shape[1] * num_heads * value_size
    memory = np.full(size + 2 * guard, 12345.0, np.float32)
    y = memory[guard : guard + size]
    function: Any = library.load().sparsify_attention_run
    function.argtypes = (ctypes.c_char_p, ctypes.POINTER(Call), *(ctypes.c_void_p,) * 5)
    name = None if kernel is None else kernel.encode()
    addresses = [_address(np.ascontiguousarray(x)) if x is not None else None for x in (q, k, v, bias)]
    _check(function(name, ctypes.byref(call), *addresses, _address(y)))
    assert (memory[:guard] == 12345.0).all() and (memory[guard + size :] == 12345.0).all()
    return y.reshape(*q.shape[:2], num_heads * value_size)


def one_node(shapes: dict[str, list[Any]], **attributes: Any) -> bytes:
    """A model of one Attention node over inputs of these shapes, `bias` among them or not."""
    given = {"num_heads": 2, "scale": 0.5, "causal": 0, "nan_guard": 0} | attributes
    given = {name: value for name, value in given.items() if value is not None}
    given.setdefault("kv_num_heads", given.get("num_heads", 2))
    names = list(shapes)
    graph = helper.make_graph(
        [helper.make_node("Attention", names, ["y"], name="attention", domain=DOMAIN, **given)],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model
