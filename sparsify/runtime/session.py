"""Opens a model in ONNX Runtime with the sparse operators and runs it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnxruntime

from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime.profile_events import node_times
from sparsify.runtime.session_options import (
    THREADS_KEY,
    Provider,
    check_providers,
    check_running,
    make_options,
    register,
)

__all__ = ["DOMAIN", "THREADS_KEY", "Session", "Value"]

DOMAIN = "ai.sparsify"
Array = np.ndarray[Any, np.dtype[Any]]

_NUMPY = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bool": np.bool_,
    "string": np.str_,
} | {f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)}


@dataclass(frozen=True)
class Value:
    """An input or output of a model.

    Attributes:
        name: Its name in the graph.
        dtype: NumPy dtype; None where NumPy has none (bfloat16, float8, sequences).
        shape: A size per dimension, or the name of a dynamic one, or None where it is unknown.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype or 'unknown'}[{sizes}]"


class Session:
    """A model that is ready to run.

    Attributes:
        inputs: What `run` must be given.
        outputs: What `run` returns.
        raw: The `onnxruntime.InferenceSession` below.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    raw: onnxruntime.InferenceSession

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        threads: int | None = None,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        profile: bool = False,
        config: Mapping[str, str] | None = None,
        session_options: onnxruntime.SessionOptions | None = None,
        **options: Any,
    ) -> None:
        """Opens a model.

        Args:
            model: Path of an ONNX file, or its bytes.
            threads: Threads within an operator; None leaves the choice to ONNX Runtime.
            providers: Execution providers in order of preference: names, or names with their options.
            provider_options: Options of each provider, as ONNX Runtime's session takes them.
            profile: Collect what `profile` reports.
            config: Entries for `SessionOptions.add_session_config_entry`.
            session_options: ONNX Runtime's own options to start from; the operators are registered in them,
                and what else is given here is set in them. They may serve several sessions.
            **options: Attributes of `onnxruntime.SessionOptions`, such as `graph_optimization_level`.

        Raises:
            UserError: The file is missing or no valid model, or an option or provider is unknown.
            RuntimeLibraryError: The native library is missing, or refuses the packed weights, or the first
                provider does not start.
        """
        if isinstance(model, str | Path) and not Path(model).is_file():
            raise UserError(f"there is no file {str(model)!r}")
        self._name = "the model" if isinstance(model, bytes) else str(model)
        self._profile_folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if profile else None
        check_providers(providers, provider_options)
        built = make_options(session_options, threads, config or {}, options)
        before = built.enable_profiling, built.profile_file_prefix
        if self._profile_folder is not None:
            built.enable_profiling = True
            built.profile_file_prefix = str(Path(self._profile_folder.name) / "profile")
        missing = register(built)
        try:
            source = model if isinstance(model, bytes) else str(model)
            self.raw = onnxruntime.InferenceSession(
                source, built, providers=list(providers), provider_options=provider_options
            )
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise self._open_error(error, missing) from error
        finally:
            built.enable_profiling, built.profile_file_prefix = before
        check_running(providers, self.raw.get_providers())
        self.inputs = tuple(map(_value, self.raw.get_inputs()))
        self.outputs = tuple(map(_value, self.raw.get_outputs()))

    @overload
    def run(
        self, feeds: Mapping[str, Any], /, *, run_options: onnxruntime.RunOptions | None = None
    ) -> dict[str, Array]: ...
    @overload
    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        /,
        run_options: onnxruntime.RunOptions | None = None,
    ) -> list[Array]: ...
    def run(
        self,
        first: Mapping[str, Any] | Sequence[str] | None,
        input_feed: Mapping[str, Any] | None = None,
        /,
        run_options: onnxruntime.RunOptions | None = None,
    ) -> dict[str, Array] | list[Array]:
        """Runs the model once; several threads may do so at the same time.

        Called as `run(feeds)`, or as ONNX Runtime's own session is: `run(output_names, feeds)`, None for all.

        Args:
            first: An array for every input, or the names of the outputs to compute.
            input_feed: An array for every input, in the second form.
            run_options: ONNX Runtime's options of one run.

        Returns:
            The outputs by name in the first form; a list, in the order asked for, in the second.

        Raises:
            UserError: An input is missing, unknown, or of a wrong type or shape, or the model fails on it.
        """
        if isinstance(first, Mapping):
            return self._run(first, None, run_options)
        if input_feed is None:
            raise UserError("run takes feeds, or output names (None for all) and feeds")
        return list(self._run(input_feed, first, run_options).values())

    def get_inputs(self) -> list[Any]:
        """Inputs as ONNX Runtime describes them."""
        return list(self.raw.get_inputs())

    def get_outputs(self) -> list[Any]:
        """Outputs as ONNX Runtime describes them."""
        return list(self.raw.get_outputs())

    def get_providers(self) -> list[str]:
        """Execution providers in use, in order of preference."""
        return list(self.raw.get_providers())

    def get_modelmeta(self) -> Any:
        """The model's metadata as ONNX Runtime describes it."""
        return self.raw.get_modelmeta()

    def io_binding(self) -> Any:
        """A new `onnxruntime.IOBinding`, for inputs and outputs that stay in the caller's memory."""
        return self.raw.io_binding()

    def run_with_iobinding(self, binding: Any, run_options: onnxruntime.RunOptions | None = None) -> None:
        """Runs the model on what is bound; outputs are where the binding says.

        Args:
            binding: From `io_binding`.
            run_options: ONNX Runtime's options of one run.

        Raises:
            UserError: The model fails on what is bound.
        """
        try:
            self.raw.run_with_iobinding(binding, run_options)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise UserError(f"{self._name} failed on what is bound: {error}") from error

    def end_profiling(self) -> str:
        """Ends the profiling that `enable_profiling=True` began, and returns the path of ONNX Runtime's file.

        Raises:
            UserError: The session was opened with `profile=True`, whose file `profile` reads.
        """
        if self._profile_folder is not None:
            raise UserError("this session was opened with profile=True: call profile() for its times")
        return str(self.raw.end_profiling())

    def _run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None,
        run_options: onnxruntime.RunOptions | None,
    ) -> dict[str, Array]:
        arrays = self._check_feeds(feeds)
        names = [value.name for value in self.outputs]
        unknown = [name for name in outputs or () if name not in names]
        if unknown:
            raise UserError(f"{self._name} has no output {unknown[0]!r}; its outputs are {', '.join(names)}")
        wanted = names if outputs is None else list(outputs)
        try:
            results = self.raw.run(wanted, arrays, run_options)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise UserError(f"{self._name} failed on these inputs: {error}") from error
        return dict(zip(wanted, results, strict=True))

    def profile(self) -> list[dict[str, Any]]:
        """Ends profiling and returns the time of every node, longest first.

        Returns:
            What `profile_events.node_times` says: `node`, `op`, `calls`, `us`, `share`, and shapes.

        Raises:
            UserError: The session was opened without `profile=True`, or this was called before.
        """
        if self._profile_folder is None:
            raise UserError("nothing was profiled: open the session with profile=True, and ask once")
        path = Path(self.raw.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        self._profile_folder.cleanup()
        self._profile_folder = None
        return node_times(events)

    def _check_feeds(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        expected = {value.name: value for value in self.inputs}
        for name in feeds:
            if name not in expected:
                raise UserError(f"{self._name} has no input {name!r}; it takes {self._describe_inputs()}")
        arrays = {}
        for name, value in expected.items():
            if name not in feeds:
                raise UserError(
                    f"input {name!r} of {self._name} is missing; it takes {self._describe_inputs()}"
                )
            arrays[name] = np.asarray(feeds[name])
            _check_array(value, arrays[name])
        return arrays

    def _describe_inputs(self) -> str:
        return "; ".join(map(str, self.inputs))

    def _open_error(self, error: Exception, missing: RuntimeLibraryError | None) -> Exception:
        text = str(error)
        if missing is not None and DOMAIN in text:
            return missing
        if "Domain already set" in text:
            return UserError(
                "the session options have the sparse operators registered already, and a session registers "
                "them itself: leave register_custom_ops_library out"
            )
        if "Sparse" in text and "node '" in text:
            return RuntimeLibraryError(f"{self._name} has a sparse node that cannot run here: {text}")
        return UserError(f"ONNX Runtime cannot open {self._name}: {text}")


def _value(arg: onnxruntime.NodeArg) -> Value:
    element = arg.type.removeprefix("tensor(").removesuffix(")")
    numpy_type = _NUMPY.get(element) if arg.type.startswith("tensor(") else None
    shape = tuple(size if isinstance(size, int | str) else None for size in arg.shape or ())
    return Value(arg.name, None if numpy_type is None else np.dtype(numpy_type), shape)


def _check_array(value: Value, array: Array) -> None:
    if value.dtype is not None and value.dtype.kind not in "UO" and array.dtype != value.dtype:
        raise UserError(f"input {value.name!r} must be {value.dtype}, not {array.dtype}: expected {value}")
    if not value.shape:  # a scalar, or an unknown rank: ONNX Runtime reports both alike
        return
    fits = len(array.shape) == len(value.shape) and all(
        not isinstance(size, int) or size == actual
        for size, actual in zip(value.shape, array.shape, strict=True)
    )
    if not fits:
        raise UserError(f"input {value.name!r} has shape {list(array.shape)}, but expected {value}")
