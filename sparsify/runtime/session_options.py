"""ONNX Runtime's options for a session with the sparse operators."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime

from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime.library import library_path

THREADS_KEY = "ai.sparsify.threads"
"""Session option that tells the operators how many threads their session has."""

Provider = str | tuple[str, Mapping[str, Any]]

_registered: weakref.WeakSet[onnxruntime.SessionOptions] = weakref.WeakSet()


def make_options(
    given: onnxruntime.SessionOptions | None,
    threads: int | None,
    config: Mapping[str, str],
    settings: Mapping[str, Any],
) -> onnxruntime.SessionOptions:
    """Options as asked for.

    Args:
        given: Options to start from; they are changed in place, since they cannot be copied.
        threads: Threads within an operator; None leaves the choice to the options, or to ONNX Runtime.
        config: Entries for `SessionOptions.add_session_config_entry`.
        settings: Attributes of the options.

    Raises:
        UserError: A setting does not exist or does not take the value, or there are fewer than one threads.
    """
    options = onnxruntime.SessionOptions() if given is None else given
    if given is None:
        options.log_severity_level = 4  # what goes wrong is raised; printing it as well helps nobody
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, not {threads}")
        options.intra_op_num_threads = threads
    for name, value in settings.items():
        if name.startswith("_") or not hasattr(options, name) or callable(getattr(options, name)):
            raise UserError(f"onnxruntime.SessionOptions has no setting {name!r}")
        try:
            setattr(options, name, value)
        except TypeError as error:
            raise UserError(f"the setting {name!r} of onnxruntime.SessionOptions: {error}") from error
    for key, entry in config.items():
        options.add_session_config_entry(key, entry)
    if options.intra_op_num_threads and THREADS_KEY not in config and options not in _registered:
        options.add_session_config_entry(THREADS_KEY, str(options.intra_op_num_threads))
    return options


def register(options: onnxruntime.SessionOptions) -> RuntimeLibraryError | None:
    """Registers the sparse operators, once for each options object.

    Args:
        options: Changed in place.

    Returns:
        Why there is no library, where there is none: a dense model still runs without.

    Raises:
        RuntimeLibraryError: ONNX Runtime refuses the library.
    """
    if options in _registered:
        return None
    try:
        path = library_path()
    except RuntimeLibraryError as error:
        return error
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise RuntimeLibraryError(f"ONNX Runtime cannot load {path}: {error}") from error
    _registered.add(options)
    return None


def check_providers(providers: Sequence[Provider], options: Sequence[Mapping[str, Any]] | None) -> None:
    """Checks execution providers before ONNX Runtime, which only warns of unknown ones.

    Args:
        providers: Names, or names with options.
        options: Options of each provider, where they are given apart.

    Raises:
        UserError: This ONNX Runtime lacks one of them, or the options are not one for each.
    """
    available = onnxruntime.get_available_providers()
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise UserError(
                f"this ONNX Runtime has no provider {name!r}; it has {', '.join(available)}. "
                "For CUDAExecutionProvider, install onnxruntime-gpu."
            )
    if options is not None and len(options) != len(providers):
        raise UserError(
            f"provider_options has {len(options)} entries for {len(providers)} providers; give one for each"
        )


def check_running(asked: Sequence[Provider], running: Sequence[str]) -> None:
    """Checks that the first provider asked for runs: ONNX Runtime falls back to the CPU with a mere warning.

    Args:
        asked: Names, or names with options.
        running: The session's providers.

    Raises:
        RuntimeLibraryError: It does not.
    """
    first = next((name if isinstance(name, str) else name[0] for name in asked), None)
    if first is not None and first not in running:
        raise RuntimeLibraryError(
            f"{first} did not start, so ONNX Runtime would run on {', '.join(running)}: "
            "see `sparsify doctor`, and install the CUDA and cuDNN libraries that onnxruntime-gpu needs"
        )
