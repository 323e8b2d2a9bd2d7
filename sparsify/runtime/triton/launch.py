"""One way for every kernel to start, which tests and the compile table can record instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from sparsify.errors import UserError
from sparsify.runtime.triton.language import interpreted


@dataclass(frozen=True)
class Config:
    """A named way to cut a kernel's work.

    Attributes:
        name: What it is good for, unique in its kernel.
        batch: Rows of X (or of both gradients' inputs) that a program takes at a time; 0 where the caller
            decides.
        entries: Stored weights, or inputs, that a program takes at a time; 0 where the layout decides.
        warps: Warps of a program.
        stages: Loads that the compiler keeps in flight.
    """

    name: str
    batch: int = 0
    entries: int = 0
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Launch:
    """One start of a kernel.

    Attributes:
        kernel: The decorated function.
        grid: Programs along up to three axes.
        arguments: The kernel's arguments by name, constants included.
        config: How the work is cut.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: Config

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.kernel.__name__)


_RECORD: ContextVar[list[Launch] | None] = ContextVar("sparsify_triton_record", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collects the launches of the block, every configuration of each, instead of running them.

    Outputs that the block computes are not initialized.
    """
    launches: list[Launch] = []
    token = _RECORD.set(launches)
    try:
        yield launches
    finally:
        _RECORD.reset(token)


def is_recording() -> bool:
    """Whether launches are recorded."""
    return _RECORD.get() is not None


def start(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], config: Config) -> None:
    """Starts a kernel on the current stream, or records that it would.

    Raises:
        UserError: A tensor is not on a GPU, and Triton does not interpret.
    """
    record = _RECORD.get()
    if record is not None:
        record.append(Launch(kernel, grid, dict(arguments), config))
        return
    devices = {value.device for value in arguments.values() if isinstance(value, torch.Tensor)}
    if len(devices) != 1:
        raise UserError(
            f"{kernel.__name__}: input, packed weight and bias lie on {sorted(map(str, devices))}"
        )
    (device,) = devices
    if device.type != "cuda" and not interpreted():
        raise UserError(
            f"{kernel.__name__}: tensors on {device.type!r}, but these kernels run on CUDA devices: move "
            "them there, use the CPU kernels, or set TRITON_INTERPRET=1 before the first import"
        )
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](**arguments, **options)
