"""Whether the native library has the attention operator."""

from __future__ import annotations

from sparsify.runtime.library import load

__all__ = ["has_attention"]


def has_attention() -> bool:
    """Whether the native library has `ai.sparsify::Attention`: `SPARSIFY_LIBRARY` may name an older build.

    Raises:
        RuntimeLibraryError: There is no library.
    """
    return hasattr(load(), "sparsify_attention_run")
