"""What a model is timed on, and how it is called there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import onnxruntime

from sparsify.errors import UserError
from sparsify.runtime.feeds import Array
from sparsify.runtime.session import Session
from sparsify.runtime.session_options import check_providers

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""ONNX Runtime's providers, in order of preference, by the name that a caller gives."""

PRECISION_VARIABLE = "SPARSIFY_CUDA_PRECISION"
"""Environment variable that says what sparse products may be rounded to on tensor cores."""


def check_bench_provider(provider: str, profile: bool) -> tuple[str, ...]:
    """ONNX Runtime's providers for a benchmark.

    Args:
        provider: A key of `PROVIDERS`.
        profile: Whether nodes are to be timed one by one.

    Raises:
        UserError: No such provider, or this ONNX Runtime lacks it, or its nodes cannot be profiled.
    """
    if provider not in PROVIDERS:
        raise UserError(f"unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
    check_providers(PROVIDERS[provider], None)
    if profile and provider != "cpu":
        raise UserError("the profile compares nodes with the CPU's ceilings: leave --profile out on the GPU")
    return PROVIDERS[provider]


def precisions(provider: str) -> dict[str, str]:
    """What products are rounded to before they are taken: of dense nodes, and of sparse ones.

    On the GPU, dense nodes use TF32, ONNX Runtime's default, and sparse ones what `PRECISION_VARIABLE` allows
    (their blocks of 8 and 16 outputs on tensor cores; all else is float32).

    Args:
        provider: A key of `PROVIDERS`.
    """
    if provider == "cpu":
        return {"dense": "float32", "sparse": "float32"}
    dense = "float32" if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0" else "tf32"
    return {"dense": dense, "sparse": os.environ.get(PRECISION_VARIABLE, "float32")}


def call_of(session: Session, feeds: Mapping[str, Array], provider: str) -> Callable[[], object]:
    """A function that runs the session once on these inputs.

    On the GPU, inputs are copied there now and outputs stay there, so that no call pays for the bus; a call
    returns when the device has finished.

    Args:
        session: An open session.
        feeds: An array for every input.
        provider: A key of `PROVIDERS`.
    """
    if provider == "cpu":
        return lambda: session.raw.run(None, feeds)
    return bound_call(session, feeds, provider)


def bound_call(session: Session, feeds: Mapping[str, Array], device: str) -> Callable[[], object]:
    """A function that runs the session on inputs that are in a device's memory.

    Args:
        session: An open session.
        feeds: An array for every input.
        device: Name of the device's memory as ONNX Runtime's bindings take it.
    """
    binding = session.io_binding()
    kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in feeds.items()}
    for name, value in kept.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.outputs:
        binding.bind_output(output.name, device)
    binding.synchronize_inputs()

    def call() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return call
