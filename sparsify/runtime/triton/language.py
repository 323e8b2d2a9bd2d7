"""Triton itself, or an error that says what to do without it."""

from __future__ import annotations

from sparsify.errors import RuntimeLibraryError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise RuntimeLibraryError(
        f"the GPU kernels need Triton, which cannot be imported ({error}): on Linux install it with "
        "`pip install 'sparsify-ift[gpu]'`; there is no Triton for other systems, where models run on the CPU"
    ) from error

__all__ = ["interpreted", "tl", "triton"]


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of any device: TRITON_INTERPRET=1 at import."""
    return bool(triton.knobs.runtime.interpret)
