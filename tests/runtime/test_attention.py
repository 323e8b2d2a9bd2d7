from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime import Session
from sparsify.runtime.reference import attention
from tests.runtime.attention import one_node, operands, run
from tests.runtime.native import supported_kernels

LOWEST = float(np.finfo(np.float32).min)
KERNELS = supported_kernels()


def close(got: np.ndarray, want: np.ndarray, v: np.ndarray) -> bool:
    """Within rounding: a result is a mean of values, so their largest is its scale."""
    bound = 16 * np.finfo(np.float32).eps * max(1.0, float(np.abs(v[np.isfinite(v)]).max(initial=1.0)))
    return bool(np.allclose(got, want, rtol=0.0, atol=bound, equal_nan=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 128, 128, 2, 64),
        (2, 197, 197, 2, 16),
        (3, 5, 7, 2, 3),
        (1, 16, 17, 3, 5),
        (1, 33, 31, 2, 1),
        (1, 49, 1100, 1, 20),
        (2, 1, 600, 4, 8),
        (1, 80, 1, 2, 7),
    ],
    ids=str,
)
def test_every_kernel_computes_the_reference(shape, causal, kernel):
    heads, size = shape[3:]
    q, k, v = operands(*shape)
    options: dict[str, Any] = {"num_heads": heads, "scale": size**-0.5, "causal": causal}
    want = attention(q, k, v, **options)
    assert close(run(q, k, v, kernel=kernel, **options), want, v)
    assert not close(run(q, 1.01 * k, 1.001 * v, kernel=kernel, **options), want, v)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_result_does_not_depend_on_the_number_of_threads(kernel):
    q, k, v = operands(2, 150, 130, 3, 24)
    options: dict[str, Any] = {"num_heads": 3, "scale": 0.2, "kernel": kernel}
    alone = run(q, k, v, **options)
    for threads in (2, 3, 7):
        assert np.array_equal(run(q, k, v, threads=threads, **options), alone)


@pytest.mark.parametrize("kernel", KERNELS)
def test_heads_of_keys_serve_several_heads_of_queries_and_values_may_be_wider(kernel):
    q, k, v = operands(2, 40, 37, 6, 10, kv_heads=2, value_size=13)
    options: dict[str, Any] = {"num_heads": 6, "kv_num_heads": 2, "scale": 0.3}
    want = attention(q, k, v, **options)
    assert want.shape == (2, 40, 6 * 13)
    assert close(run(q, k, v, kernel=kernel, **options), want, v)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 70, 90),
        (2, 1, 70, 90),
        (1, 3, 1, 90),
        (2, 1, 1, 90),
        (70, 90),
        (90,),
        (2, 3, 70, 1),
        (1, 3, 1, 1),
        (),
    ],
    ids=str,
)
def test_a_bias_of_any_shape_that_broadcasts_is_added(shape, kernel):
    q, k, v = operands(2, 70, 90, 3, 12)
    bias = np.random.default_rng(5).standard_normal(shape).astype(np.float32).reshape(shape)
    for causal in (False, True):
        options: dict[str, Any] = {"num_heads": 3, "scale": 0.25, "causal": causal}
        want = attention(q, k, v, bias, **options)
        assert close(run(q, k, v, bias, kernel=kernel, **options), want, v)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("low", [-np.inf, LOWEST, -10000.0])
def test_masks_mean_what_softmax_makes_of_them(low, kernel):
    """Also over more keys than are taken together, with whole ranges of them masked."""
    q, k, v = operands(1, 20, 1200, 2, 8)
    rng = np.random.default_rng(2)
    bias = np.where(rng.random((1, 1, 20, 1200)) < 0.5, low, 0.0).astype(np.float32)
    bias[..., 0, :1100] = low
    bias[..., 1, 600:] = low
    bias[..., 2, :] = low
    for guard in (False, True):
        options: dict[str, Any] = {"num_heads": 2, "scale": 0.35, "nan_guard": guard}
        got = run(q, k, v, bias, kernel=kernel, **options)
        places = 1000.0 if low == -10000.0 else 1.0  # scores of that size round to 0.001
        assert close(got, attention(q, k, v, bias, **options), places * v)
        empty = np.zeros(16) if guard else np.full(16, np.nan)
        assert np.isinf(low) == np.array_equal(got[0, 2], empty, equal_nan=True)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFFFFFFF, 0x7F800000, 0xFF800000], ids=hex)
def test_what_is_not_finite_spoils_the_queries_that_see_it(bits, guard, kernel):
    value = np.array([bits], dtype=np.uint32).view(np.float32)[0]
    options: dict[str, Any] = {"num_heads": 2, "scale": 0.35, "nan_guard": guard}
    for which in range(3):
        arrays = operands(1, 40, 50, 2, 8)
        arrays[which][0, 30, 3] = value
        for causal in (False, True)[: 1 if which == 2 else 2]:
            with np.errstate(all="ignore"):
                want = attention(*arrays, **options, causal=causal)
            got = run(*arrays, kernel=kernel, causal=causal, **options)
            assert np.array_equal(np.isnan(got), np.isnan(want))
            finite = np.isfinite(want)
            assert close(got[finite], want[finite], arrays[2])


def test_probabilities_below_the_smallest_are_zero():
    q, k, v = operands(1, 4, 40, 1, 4)
    q[:], v[:] = 1.0, 1.0
    k[:] = np.linspace(0.0, 60.0, 40, dtype=np.float32)[:, None]
    for kernel in KERNELS:
        got = run(q, k, v, num_heads=1, scale=1.0, kernel=kernel)
        assert close(got, attention(q, k, v, num_heads=1, scale=1.0), v)


@pytest.mark.parametrize("shape", [(0, 5, 5, 2, 4), (2, 0, 5, 2, 4), (2, 5, 0, 2, 4)], ids=str)
def test_nothing_to_attend_to_gives_zeros(shape):
    q, k, v = operands(*shape)
    assert np.array_equal(run(q, k, v, num_heads=2, scale=1.0), np.zeros((*shape[:2], 8), dtype=np.float32))


@pytest.mark.parametrize("seed", range(40))
def test_random_shapes_and_attributes_agree_with_the_reference(seed):
    rng = np.random.default_rng(seed)
    kv_heads, shared = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    batch, queries, keys, size, value_size = (int(rng.integers(1, high)) for high in (4, 140, 200, 40, 40))
    heads = kv_heads * shared
    q, k, v = operands(batch, queries, keys, heads, size, kv_heads=kv_heads, value_size=value_size, seed=seed)
    bias = None
    if rng.random() < 0.6:
        whole = (batch, heads, queries, keys)
        shape = tuple(extent if rng.random() < 0.6 else 1 for extent in whole)
        bias = np.where(rng.random(shape) < 0.3, rng.choice([-np.inf, LOWEST, 1.0]), 0.5).astype(np.float32)
    options: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": float(np.float32(rng.normal())),
        "causal": bool(rng.random() < 0.4),
        "nan_guard": bool(rng.random() < 0.5),
    }
    kernel, threads = str(rng.choice(KERNELS)), int(rng.integers(1, 4))
    want = attention(q, k, v, bias, **options)
    scale = 1 + abs(options["scale"]) * size  # large scores round to fewer places
    got = run(q, k, v, bias, kernel=kernel, threads=threads, **options)
    assert close(got, want, scale * v)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"num_heads": 0}, "num_heads"),
        ({"num_heads": 3, "kv_num_heads": 2}, "multiple"),
        ({"kv_num_heads": -1}, "kv_num_heads"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"num_heads": None}, "'num_heads' is missing"),
        ({"scale": None}, "'scale' is missing"),
        ({"causal": None}, "'causal' is missing"),
        ({"nan_guard": None}, "'nan_guard' is missing"),
    ],
)
def test_attributes_that_make_no_sense_are_refused_with_the_node(attributes, words):
    shapes = {name: ["b", "s", 8] for name in "qkv"}
    with pytest.raises((UserError, RuntimeLibraryError), match="attention") as refusal:
        Session(one_node(shapes, **attributes))
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 4, 8), (1, 4, 8), (1, 5, 8)), "keys"),
        (((1, 4, 8), (2, 4, 8), (2, 4, 8)), "batch"),
        (((1, 4, 7), (1, 4, 7), (1, 4, 8)), "size"),
        (((1, 4, 8), (1, 4, 6), (1, 4, 8)), "size"),
        (((4, 8), (1, 4, 8), (1, 4, 8)), "must be"),
        (((1, 4, 8), (1, 4, 8), (1, 4, 8), (1, 2, 4, 5)), "broadcast"),
        (((1, 4, 8), (1, 4, 8), (1, 4, 8), (1, 1, 2, 4, 4)), "broadcast"),
        (((1, 4, 8), (1, 4, 8), (1, 4, 8), (3, 1, 1, 4)), "broadcast"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_node(shapes, words):
    names = ["q", "k", "v", "bias"][: len(shapes)]
    unknown: dict[str, list[Any]] = {
        name: [f"{name}{axis}" for axis in range(len(shape))]
        for name, shape in zip(names, shapes, strict=True)
    }
    session = Session(one_node(unknown))
    with pytest.raises(UserError, match="attention") as refusal:
        session.run({name: np.zeros(s, np.float32) for name, s in zip(names, shapes, strict=True)})
    assert words in str(refusal.value)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_operator_runs_in_onnx_runtime_with_and_without_a_bias(threads):
    q, k, v = operands(2, 70, 60, 4, 8, kv_heads=2)
    bias = np.random.default_rng(0).standard_normal((2, 1, 70, 60)).astype(np.float32)
    shapes = {"q": ["b", "s", 32], "k": ["b", "t", 16], "v": ["b", "t", 16]}
    feeds = {"q": q, "k": k, "v": v}
    options: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.5}
    for added in (None, bias):
        if added is not None:
            shapes, feeds = shapes | {"bias": ["b", 1, "s", "t"]}, feeds | {"bias": added}
        session = Session(one_node(shapes, **options), threads=threads)
        (result,) = session.run(feeds).values()
        assert close(result, attention(q, k, v, added, **options), v)


def test_the_shape_of_the_result_is_inferred():
    shapes: dict[str, list[Any]] = {"q": ["b", "s", 32], "k": ["b", "t", 16], "v": ["b", "t", 24]}
    session = Session(one_node(shapes, num_heads=4, kv_num_heads=2))
    assert session.outputs[0].shape == ("b", "s", 48)


def test_onnx_runtimes_own_attention_computes_the_same():
    q, k, v = operands(2, 65, 77, 4, 16)
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=4, scale=0.25)
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)
            for name, x in zip("qkv", (q, k, v), strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    (want,) = Session(model.SerializeToString()).run({"q": q, "k": k, "v": v}).values()
    assert close(run(q, k, v, num_heads=4, scale=0.25), want, v)


def guarded(guard: bool) -> onnx.ModelProto:
    """Attention of one head of size 4 in ONNX's own nodes."""
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Add", ["s", "bias"], ["t"]),
        helper.make_node("Softmax", ["t"], ["p"], axis=-1),
    ]
    if guard:
        nodes += [
            helper.make_node("IsNaN", ["p"], ["n"]),
            helper.make_node("Where", ["n", "zero", "p"], ["w"]),
        ]
    nodes.append(helper.make_node("MatMul", ["w" if guard else "p", "v"], ["y"]))
    shapes = {"q": [1, 5, 4], "k": [1, 6, 4], "v": [1, 6, 4], "bias": [1, 5, 6]}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(0.0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("guard", [False, True])
def test_the_guard_is_what_exporters_write_behind_softmax(guard):
    q, k, v = operands(1, 5, 6, 1, 4)
    bias = np.zeros((1, 5, 6), dtype=np.float32)
    bias[0, 0], bias[0, 1], bias[0, 2, 3] = -np.inf, LOWEST, np.nan
    feeds = {"q": q, "k": k, "v": v, "bias": bias}
    (want,) = Session(guarded(guard).SerializeToString()).run(feeds).values()
    got = run(q, k, v, bias, num_heads=1, scale=1.0, nan_guard=guard)
    assert close(got, want, v)
    assert np.isnan(got).any() != guard


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "SPARSIFY_KERNEL", "nonsense")
    with pytest.raises(RuntimeLibraryError, match="nonsense"):
        run(*operands(1, 2, 2, 1, 2), num_heads=1, scale=1.0)
