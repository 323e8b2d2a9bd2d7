"""Which of a kernel's few configurations runs: the fastest one, measured once per shape on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from sparsify.errors import UserError
from sparsify.runtime.triton.language import triton
from sparsify.runtime.triton.launch import Config, is_recording

ENVIRONMENT_VARIABLE = "SPARSIFY_GPU_TUNE"
PROGRAMS = 528
"""Programs that a launch should have at least: four for each of the 132 multiprocessors of an H100 SXM."""

_CHOSEN: dict[Hashable, Config] = {}


def chosen() -> dict[Hashable, Config]:
    """What was measured in this process: configurations by kernel, device, type, shape and batch bucket."""
    return dict(_CHOSEN)


def forget() -> None:
    """Forgets what was measured."""
    _CHOSEN.clear()


def bucket(batch: int) -> int:
    """The next power of two, at least 1: batches of one bucket share a measured choice."""
    return 1 << max(0, batch - 1).bit_length()


def splits(programs: int, steps: int) -> int:
    """Into how many parts, added up afterwards, each program's sums are cut so that the device is filled.

    Args:
        programs: Programs without cutting.
        steps: Steps of the longest program's loop; every part keeps at least two.

    Returns:
        A power of two from 1 to 16.
    """
    parts = 1
    while parts < 16 and programs * parts * 2 <= PROGRAMS and steps >= 4 * parts:
        parts *= 2
    return parts


def _timed(call: Callable[[], None]) -> float:
    return float(triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median"))


def run(
    key: tuple[Hashable, ...],
    configs: Sequence[Config],
    call: Callable[[Config], None],
    device: torch.device,
    timer: Callable[[Callable[[], None]], float] | None = None,
) -> None:
    """Calls a kernel with the configuration that is fastest for `key`.

    The first call for a key on a GPU times every configuration; not while a CUDA graph is captured, and not
    with SPARSIFY_GPU_TUNE=0, when the first one runs. The same holds where nothing can be timed.

    Args:
        key: Kernel, types, shape and batch bucket.
        configs: At least one, the best guess first.
        call: Starts the kernel; called several times, so it must not add to its output.
        device: Where the kernel runs.
        timer: Milliseconds of a call, for tests.

    Raises:
        UserError: SPARSIFY_GPU_TUNE is neither 0 nor 1.
    """
    if is_recording():
        for config in configs:
            call(config)
        return
    call(_choose((device, *key), configs, call, device, timer))


def _choose(
    key: tuple[Hashable, ...],
    configs: Sequence[Config],
    call: Callable[[Config], None],
    device: torch.device,
    timer: Callable[[Callable[[], None]], float] | None,
) -> Config:
    wish = os.environ.get(ENVIRONMENT_VARIABLE, "1")
    if wish not in ("0", "1"):
        raise UserError(f"{ENVIRONMENT_VARIABLE} is {wish!r}: set it to 1 (measure configurations) or 0")
    if len(configs) == 1 or wish == "0":
        return configs[0]
    if key in _CHOSEN:
        return _CHOSEN[key]
    if timer is None:
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return configs[0]
        timer = _timed
    times = [timer(lambda config=config: call(config)) for config in configs]  # type: ignore[misc]
    _CHOSEN[key] = configs[times.index(min(times))]
    return _CHOSEN[key]


def key_of(*parts: Any) -> tuple[Hashable, ...]:
    """A key of names, types and sizes; tensors stand for their types."""
    return tuple(part.dtype if isinstance(part, torch.Tensor) else part for part in parts)
