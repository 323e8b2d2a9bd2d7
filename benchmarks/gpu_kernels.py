"""Compiles what the kernels would launch for a layer, without a GPU, and reads what the compiler says of it.

The launches are recorded from the very calls that run a layer: nothing here repeats how a kernel is started.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsify.runtime.triton import linear, packing
from sparsify.runtime.triton.launch import Launch, recording
from sparsify.runtime.triton.packed import Packed

TARGETS = (80, 89, 90, 100)
"""Compute capabilities: A100, RTX 40 and L4, H100, B200."""

KINDS = {"float16": (torch.float16, "highest"), "bfloat16": (torch.bfloat16, "highest")}
KINDS |= {"tf32": (torch.float32, "high"), "float32": (torch.float32, "highest")}
"""Types of inputs and weights, and torch's precision of float32 products."""

_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_TYPES |= {torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8"}
_USED = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one kernel on one target.

    Attributes:
        registers: Of a thread.
        shared: Bytes of shared memory of a program, as Triton launches it.
        stack: Bytes of a thread's stack frame.
        spill_stores: Bytes that ptxas stores for want of registers.
        spill_loads: Bytes that it loads back.
        threads: Of a program.
    """

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    threads: int


def masked(layout: str, rows: int, columns: int, density: float) -> Tensor:
    """A random mask that fills a layout, `[rows, columns]`; n:m has its own density."""
    generator = torch.Generator().manual_seed(0)
    if found := re.fullmatch(r"blocks-(\d+)x(\d+)", layout):
        R, C = int(found[1]), int(found[2])
        kept = torch.rand(rows // R, columns // C, generator=generator) < density
        return kept.repeat_interleave(R, 0).repeat_interleave(C, 1)
    if found := re.fullmatch(r"nm-(\d+):(\d+)", layout):
        n, m = int(found[1]), int(found[2])
        order = torch.rand(rows, columns // m, m, generator=generator).argsort(2)
        return (order < n).reshape(rows, columns)
    scores = torch.rand(rows, columns, generator=generator)
    if layout == "condensed":
        return scores.argsort(1) < round(density * columns)
    return scores < density


def packed_layer(layout: str, rows: int, columns: int, density: float, kind: str) -> Packed:
    """A random weight packed for a layout in one of `KINDS`."""
    dtype = KINDS[kind][0]
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    return packing.pack(weight, masked(layout, rows, columns, density), layout=layout)


@contextlib.contextmanager
def precision(kind: str) -> Iterator[None]:
    """torch's precision of float32 products, as a kind asks."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(KINDS[kind][1])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def launches(packed: Packed, operation: str, batch: int, kind: str) -> list[Launch]:
    """What an operation starts, in every configuration.

    Args:
        packed: From `packed_layer`.
        operation: `forward` (with bias, residual and GELU), `input_gradient` or `weight_gradient`.
        batch: Rows of X.
        kind: One of `KINDS`.
    """
    dtype = packed.values.dtype
    x, dy = (torch.empty(batch, packed.shape[axis], dtype=dtype) for axis in (1, 0))
    with precision(kind), recording() as found:
        if operation == "forward":
            bias = torch.empty(packed.shape[0], dtype=dtype)
            linear.forward(x, packed, bias, "gelu", residual=torch.empty_like(dy))
        elif operation == "input_gradient":
            linear.input_gradient(dy, packed)
        else:
            linear.weight_gradient(x, dy, packed)
    return found


def source(launch: Launch) -> ASTSource:
    """The kernel specialized as Triton specializes it for these arguments, with aligned tensors."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        value = launch.arguments[name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[name] = value
            continue
        if isinstance(value, Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
        else:
            signature[name] = "i32" if abs(value) < 1 << 31 else "i64"
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def identity(launch: Launch) -> str:
    """The same for launches that compile to the same program, in every run."""
    parts = (source(launch).hash(), launch.config.warps, launch.config.stages)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def compiled(launch: Launch, capability: int) -> Compiled:
    """Compiles a launch's kernel afresh.

    Raises:
        ValueError: The compiler's log does not tell what it used.
    """
    options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages, "enable_fp_fusion": True}
    log = io.StringIO()
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        target = GPUTarget("cuda", capability, 32)
        binary = triton.compile(source(launch), target=target, options=options)
    return read_log(log.getvalue(), shared=int(binary.metadata.shared), threads=32 * launch.config.warps)


def read_log(log: str, *, shared: int, threads: int) -> Compiled:
    """What ptxas's verbose log says of a file of one kernel.

    Raises:
        ValueError: It says nothing of registers or spills, or of more than one function.
    """
    used, spills = _USED.findall(log), _SPILLS.findall(log)
    if len(used) != 1 or len(spills) != 1:
        raise ValueError(f"the compiler's log has no figures of one kernel: {log!r}")
    stack, stores, loads = (int(figure) for figure in spills[0])
    return Compiled(int(used[0]), shared, stack, stores, loads, threads)
