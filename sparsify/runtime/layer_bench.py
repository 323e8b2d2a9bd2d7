"""Times one sparse layer beside ONNX Runtime's dense one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import ParityError, UserError
from sparsify.runtime import layouts
from sparsify.runtime.environment import environment
from sparsify.runtime.layer_weights import masked_weight, natural_layout
from sparsify.runtime.library import selected_kernel
from sparsify.runtime.session import DOMAIN, Session
from sparsify.runtime.timing import interleave

Array = np.ndarray[Any, np.dtype[Any]]
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True)
class Layer:
    """A layer to time.

    Attributes:
        weight: Shape of its weight, [out, in] or [out, in, kernel height, kernel width].
        image: Height and width of a convolution's input.
    """

    weight: tuple[int, ...]
    image: tuple[int, int] | None = None

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Padding that keeps the image's size for odd kernels (top, left, bottom, right)."""
        top, left = ((size - 1) // 2 for size in self.weight[2:])
        return top, left, top, left

    def x_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the input."""
        return (batch, self.weight[1], *(self.image or ()))


def parse_linear(text: str) -> Layer:
    """Reads `INxOUT`.

    Raises:
        UserError: The text is something else.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"a linear layer is written INxOUT, such as 3072x768, not {text!r}")
    return Layer((int(match[2]), int(match[1])))


def parse_conv(text: str) -> Layer:
    """Reads `CxKxRxS@HxW`: input and output channels, kernel, image.

    Raises:
        UserError: The text is something else, or the kernel does not fit the image.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)@(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 1:
        raise UserError(f"a convolution is written CxKxRxS@HxW, such as 64x64x3x3@56x56, not {text!r}")
    c, k, r, s, h, w = map(int, match.groups())
    layer = Layer((k, c, r, s), (h, w))
    if r > h + 2 * layer.pads[0] or s > w + 2 * layer.pads[1]:
        raise UserError(f"{text!r}: the kernel is larger than the padded image")
    return layer


def bench_layer(
    *,
    linear: str | None = None,
    conv: str | None = None,
    sparsities: Sequence[float] = (0.8, 0.9),
    pattern: str = "unstructured",
    batches: Sequence[int] = (1, 64, 256),
    threads: int = 1,
    seconds: float = 2.0,
) -> dict[str, Any]:
    """Times a layer, sparse and dense, both in ONNX Runtime in this process and in alternating blocks.

    Both have a bias; convolutions have stride 1 and keep the image's size for odd kernels.

    Args:
        linear: `INxOUT`; or
        conv: `CxKxRxS@HxW`.
        sparsities: Shares of the weight that are zero.
        pattern: What the mask looks like, `unstructured`, `fan-in`, `N:M` or `RxC` (outputs by inputs).
        batches: Batch sizes.
        threads: Threads of both sides.
        seconds: Seconds for each side, sparsity and batch size.

    Returns:
        `environment`, `layer`, `threads`, and `results[{sparsity, batch, pattern, layout, kernel, dense_us,
        sparse_us, speedup, gflops, max_abs_error}]`; times are medians, `gflops` counts the non-zero weights.

    Raises:
        UserError: An argument is out of its range or not understood.
        ParityError: The two sides disagree by more than rounding explains.
        RuntimeLibraryError: The native library is missing.
    """
    if (linear is None) == (conv is None):
        raise UserError("give exactly one of linear and conv")
    if not all(0 <= sparsity < 1 for sparsity in sparsities):
        raise UserError("sparsities must be at least 0 and below 1")
    if threads < 1 or any(batch < 1 for batch in batches):
        raise UserError("batch sizes and threads must be at least 1")
    layer = parse_linear(linear) if linear is not None else parse_conv(conv or "")
    rows: list[dict[str, Any]] = []
    layout = natural_layout(pattern)
    for sparsity in sparsities:
        weight = masked_weight(layer.weight, sparsity, pattern)
        models = (_dense_model(layer, weight), _sparse_model(layer, weight, layout))
        sessions = [Session(model, threads=threads) for model in models]
        rows.extend(
            _row(layer, weight, sessions, batch, seconds) | {"sparsity": sparsity} for batch in batches
        )
    shared = {"pattern": pattern, "layout": layout, "kernel": selected_kernel()}
    return {
        "environment": environment(),
        "layer": {"linear": linear, "conv": conv},
        "threads": threads,
        "results": [row | shared for row in rows],
    }


def check_layer(text: str, *, sparsity: float = 0.8, batch: int = 3) -> float:
    """Runs a layer once, sparse and dense.

    Args:
        text: `INxOUT` or `CxKxRxS@HxW`.
        sparsity: Share of the weight that is zero.
        batch: Batch size.

    Returns:
        The largest absolute difference.

    Raises:
        ParityError: It is more than rounding explains.
        RuntimeLibraryError: The native library is missing or refuses the layer.
    """
    layer = parse_conv(text) if "@" in text else parse_linear(text)
    weight = masked_weight(layer.weight, sparsity, "unstructured")
    x = np.random.default_rng(batch).standard_normal(layer.x_shape(batch)).astype(np.float32)
    models = (_dense_model(layer, weight), _sparse_model(layer, weight, "csr"))
    want, got = (Session(model, threads=1).run({"x": x})["y"] for model in models)
    return _check_parity(got, want, weight)


def _row(
    layer: Layer, weight: Array, sessions: Sequence[Session], batch: int, seconds: float
) -> dict[str, Any]:
    x = np.random.default_rng(batch).standard_normal(layer.x_shape(batch)).astype(np.float32)
    want, got = (session.run({"x": x})["y"] for session in sessions)
    error = _check_parity(got, want, weight)
    dense, sparse = interleave([_bound_call(session, x, want.shape) for session in sessions], seconds=seconds)
    positions = want.size // layer.weight[0]
    return {
        "batch": batch,
        "dense_us": 1e6 * dense.median,
        "sparse_us": 1e6 * sparse.median,
        "speedup": dense.median / sparse.median,
        "gflops": 2e-9 * float(np.count_nonzero(weight)) * positions / sparse.median,
        "max_abs_error": error,
    }


def _check_parity(got: Array, want: Array, weight: Array) -> float:
    terms = max(1.0, np.count_nonzero(weight) / weight.shape[0])
    bound = 16 * np.finfo(np.float32).eps * np.sqrt(terms) * max(1.0, float(np.abs(want).max()))
    error = float(np.abs(got - want).max())
    if error > bound:
        raise ParityError(f"the sparse layer differs from the dense one by {error:.3g}, above {bound:.3g}")
    return error


def _bound_call(session: Session, x: Array, y_shape: tuple[int, ...]) -> Callable[[], None]:
    """A call with inputs and outputs in place, so that nothing but the layer is timed."""
    binding = session.raw.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(y_shape), np.float32)
    binding.bind_ortvalue_output("y", y)
    return lambda: session.raw.run_with_iobinding(binding)


def _dense_model(layer: Layer, weight: Array) -> bytes:
    if layer.image is None:
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense", transB=1)
    else:
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="dense", pads=layer.pads)
    return _model(layer, node, {"w": weight})


def _sparse_model(layer: Layer, weight: Array, layout: str) -> bytes:
    if layer.image is None:
        packed = layouts.pack_linear(weight, layout=layout)
    else:
        packed = layouts.pack_conv(weight, strides=(1, 1), pads=layer.pads, layout=layout)
    names = [f"w{i}" for i in range(len(packed.tensors))]
    attributes: dict[str, Any] = dict(packed.attributes)
    node = helper.make_node(
        packed.operator,
        ["x", "b", "", *names],
        ["y"],
        name="sparse",
        domain=DOMAIN,
        activation="none",
        **attributes,
    )
    return _model(layer, node, dict(zip(names, packed.tensors, strict=True)))


def _model(layer: Layer, node: onnx.NodeProto, weights: dict[str, Array]) -> bytes:
    bias = np.random.default_rng(1).standard_normal(layer.weight[0]).astype(np.float32)
    constants = [numpy_helper.from_array(value, name) for name, value in (weights | {"b": bias}).items()]
    x_shape: list[str | int | None] = ["batch", *layer.x_shape(1)[1:]]
    y_shape: list[str | int | None] = [
        "batch",
        layer.weight[0],
        *(["height", "width"] if layer.image else []),
    ]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)],
        constants,
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
    return model
