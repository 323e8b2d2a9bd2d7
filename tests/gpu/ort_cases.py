"""What the operators must give on any execution provider: one case is one model and its inputs.

`tests/gpu` runs every case on CUDA; the default tests run them on the CPU, so that the cases themselves are
known to be right before a GPU sees them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sparsify.runtime import Session, layouts
from sparsify.runtime.bench_provider import bound_call
from sparsify.runtime.reference import ACTIVATIONS, UNBOUNDED, Bounds, sparse_conv, sparse_linear
from tests.runtime.graphs import masked, model, sparse_node, values

DTYPES = ("float32", "bfloat16", "float16")
BATCHES = (1, 3, 8, 9, 15, 16, 17, 64, 130, 300)
"""Around every change of kernel: few rows, tiles, tensor cores, and one to four times as many rows a warp."""

SHAPES = ((37, 283), (600, 520), (64, 1024))
PRECISIONS = {"float32": 2.0**-20, "tf32": 2.0**-10, "half": 2.0**-7}
"""Relative error of a product that a precision allows; bfloat16's, the coarsest, for half."""

STAY = {"session.disable_cpu_ep_fallback": "1"}
"""Session configuration that lets no node run elsewhere unnoticed."""


@dataclass(frozen=True)
class Case:
    """A model of one sparse node with what it must compute.

    Attributes:
        name: What it is about.
        packed: The weight.
        x: X.
        bias: Bias, a constant or an input.
        residual: Residual, of Y's shape.
        activation: Fused activation.
        bounds: Of clip.
        dynamic_bias: Whether the bias is an input.
    """

    name: str
    packed: layouts.Packed
    x: np.ndarray
    bias: np.ndarray | None = None
    residual: np.ndarray | None = None
    activation: str = "none"
    bounds: Bounds = UNBOUNDED
    dynamic_bias: bool = field(default=False)

    @property
    def model(self) -> bytes:
        """The model's bytes."""
        built = sparse_node(
            self.packed,
            bias=self.bias is not None,
            residual=self.residual is not None,
            activation=self.activation,
        )
        if self.activation == "clip":
            low, high = self.bounds
            built.attribute.extend(
                [helper.make_attribute("clip_min", low), helper.make_attribute("clip_max", high)]
            )
        constants = {f"sparse.{i}": tensor for i, tensor in enumerate(self.packed.tensors)}
        if self.bias is not None and not self.dynamic_bias:
            constants["bias"] = self.bias
        shapes: dict[str, list[Any]] = {name: list(value.shape) for name, value in self.feeds.items()}
        return onnx.ModelProto.SerializeToString(model([built], constants, shapes))

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """The run-time inputs."""
        found = {"x": self.x}
        if self.dynamic_bias and self.bias is not None:
            found["bias"] = self.bias
        if self.residual is not None:
            found["residual"] = self.residual
        return found

    def check(self, got: np.ndarray, precision: str = "float32") -> None:
        """Compares with the reference.

        Raises:
            AssertionError: They differ by more than rounding explains.
        """
        compute = sparse_linear if self.packed.operator == "SparseLinear" else sparse_conv
        want = compute(self.x, self.packed, self.bias, self.residual, self.activation, self.bounds)
        # Of standard normal inputs and weights a sum is about as large as the square root of its terms.
        terms = max(1.0, float(np.count_nonzero(layouts.unpack(self.packed)) / self.packed.shape[0]))
        allowed = PRECISIONS[precision] * 8 * np.sqrt(terms)
        assert got.shape == want.shape, self.name
        np.testing.assert_allclose(got, want, rtol=PRECISIONS[precision], atol=allowed, err_msg=self.name)


def linear_cases(layout: str, dtype: str) -> Iterator[Case]:
    """Every shape at every batch, with turns of bias, residual and activation."""
    endings = itertools.cycle(itertools.product(ACTIVATIONS, ("bias", "dynamic", None), (True, False)))
    for seed, (rows, columns) in enumerate(SHAPES):
        packed = layouts.pack_linear(masked((rows, columns), 0.1, seed), layout=layout, dtype=dtype)
        for batch in BATCHES:
            activation, bias, residual = next(endings)
            yield Case(
                f"{layout} {dtype} {rows}x{columns} batch {batch} {activation} {bias} {residual}",
                packed,
                values((batch, columns), batch),
                values((rows,), 7) if bias else None,
                values((batch, rows), 8) if residual else None,
                activation,
                (-0.5, 1.5) if activation == "clip" else UNBOUNDED,
                dynamic_bias=bias == "dynamic",
            )


CONVOLUTIONS: tuple[Mapping[str, Any], ...] = (
    {"weight": (33, 12, 3, 3), "x": (2, 12, 13, 15), "pads": (1, 1, 1, 1)},
    {"weight": (16, 20, 1, 1), "x": (5, 20, 8, 8), "strides": (2, 2)},
    {"weight": (24, 6, 5, 3), "x": (1, 6, 20, 23), "pads": (2, 0, 1, 3), "strides": (3, 2)},
    {"weight": (9, 8, 3, 3), "x": (3, 8, 16, 16), "pads": (2, 2, 2, 2), "dilations": (2, 2)},
)


def conv_cases(layout: str, dtype: str) -> Iterator[Case]:
    """Every geometry, with turns of bias and activation."""
    for seed, (made, activation) in enumerate(zip(CONVOLUTIONS, ACTIVATIONS[:4], strict=True)):
        options = {name: made[name] for name in ("strides", "pads", "dilations") if name in made}
        weight = masked(made["weight"], 0.3, seed)
        packed = layouts.pack_conv(weight, layout=layout, dtype=dtype, **options)
        bias = values((made["weight"][0],), 5) if seed % 2 else None
        yield Case(
            f"{layout} {dtype} {made['weight']}", packed, values(made["x"]), bias, activation=activation
        )


def run_bound(case: Case, session: Session, device: str) -> np.ndarray:
    """Y of a run whose inputs and outputs stay in a device's memory."""
    (got,) = bound_call(session, case.feeds, device)().copy_outputs_to_cpu()  # type: ignore[attr-defined]
    return np.asarray(got)
