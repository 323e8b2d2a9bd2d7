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
from sparsify.runtime.library import library_path

DOMAIN = "ai.sparsify"
THREADS_KEY = "ai.sparsify.threads"
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
        providers: Sequence[str] = ("CPUExecutionProvider",),
        profile: bool = False,
        config: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Opens a model.

        Args:
            model: Path of an ONNX file, or its bytes.
            threads: Threads within an operator; None leaves the choice to ONNX Runtime.
            providers: Execution providers, in order of preference.
            profile: Collect what `profile` reports.
            config: Entries for `SessionOptions.add_session_config_entry`.
            **options: Attributes of `onnxruntime.SessionOptions`, such as `graph_optimization_level`.

        Raises:
            UserError: The file is missing or no valid model, or an option or provider is unknown.
            RuntimeLibraryError: The native library is missing, or refuses the packed weights.
        """
        if isinstance(model, str | Path) and not Path(model).is_file():
            raise UserError(f"there is no file {str(model)!r}")
        self._name = "the model" if isinstance(model, bytes) else str(model)
        self._profile_folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True) if profile else None
        _check_providers(providers)
        built = _options(threads, config or {}, options)
        if self._profile_folder is not None:
            built.enable_profiling = True
            built.profile_file_prefix = str(Path(self._profile_folder.name) / "profile")
        missing = _register(built)
        try:
            source = model if isinstance(model, bytes) else str(model)
            self.raw = onnxruntime.InferenceSession(source, built, providers=list(providers))
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise self._open_error(error, missing) from error
        self.inputs = tuple(map(_value, self.raw.get_inputs()))
        self.outputs = tuple(map(_value, self.raw.get_outputs()))

    @overload
    def run(self, feeds: Mapping[str, Any], /) -> dict[str, Array]: ...
    @overload
    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], /) -> list[Array]: ...
    def run(
        self, first: Mapping[str, Any] | Sequence[str] | None, input_feed: Mapping[str, Any] | None = None, /
    ) -> dict[str, Array] | list[Array]:
        """Runs the model once; several threads may do so at the same time.

        Called as `run(feeds)`, or as ONNX Runtime's own session is: `run(output_names, feeds)`, None for all.

        Args:
            first: An array for every input, or the names of the outputs to compute.
            input_feed: An array for every input, in the second form.

        Returns:
            The outputs by name in the first form; a list, in the order asked for, in the second.

        Raises:
            UserError: An input is missing, unknown, or of a wrong type or shape, or the model fails on it.
        """
        if isinstance(first, Mapping):
            return self._run(first, None)
        if input_feed is None:
            raise UserError("run takes feeds, or output names (None for all) and feeds")
        return list(self._run(input_feed, first).values())

    def get_inputs(self) -> list[Any]:
        """Inputs as ONNX Runtime describes them."""
        return list(self.raw.get_inputs())

    def get_outputs(self) -> list[Any]:
        """Outputs as ONNX Runtime describes them."""
        return list(self.raw.get_outputs())

    def _run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None) -> dict[str, Array]:
        arrays = self._check_feeds(feeds)
        names = [value.name for value in self.outputs]
        unknown = [name for name in outputs or () if name not in names]
        if unknown:
            raise UserError(f"{self._name} has no output {unknown[0]!r}; its outputs are {', '.join(names)}")
        wanted = names if outputs is None else list(outputs)
        try:
            results = self.raw.run(wanted, arrays)
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            raise UserError(f"{self._name} failed on these inputs: {error}") from error
        return dict(zip(wanted, results, strict=True))

    def profile(self) -> list[dict[str, Any]]:
        """Ends profiling and returns the time of every node, longest first.

        Returns:
            Rows with `node`, `op`, `calls`, `us` (median microseconds a call) and `share` (of the sum).

        Raises:
            UserError: The session was opened without `profile=True`, or this was called before.
        """
        if self._profile_folder is None:
            raise UserError("nothing was profiled: open the session with profile=True, and ask once")
        path = Path(self.raw.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        self._profile_folder.cleanup()
        self._profile_folder = None
        times: dict[tuple[str, str], list[float]] = {}
        for event in events:
            name = event.get("name", "")
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                key = (name.removesuffix("_kernel_time"), event["args"]["op_name"])
                times.setdefault(key, []).append(float(event["dur"]))
        medians = {key: float(np.median(durations)) for key, durations in times.items()}
        total = max(sum(medians.values()), 1e-9)
        rows = [
            {"node": node, "op": op, "calls": len(times[node, op]), "us": median, "share": median / total}
            for (node, op), median in medians.items()
        ]
        return sorted(rows, key=lambda row: -row["share"])

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
        if "Sparse" in text and "node '" in text:
            return RuntimeLibraryError(f"{self._name} has a sparse node that cannot run here: {text}")
        return UserError(f"ONNX Runtime cannot open {self._name}: {text}")


def _check_providers(providers: Sequence[str]) -> None:
    available = onnxruntime.get_available_providers()
    for provider in providers:
        if provider not in available:
            raise UserError(
                f"this ONNX Runtime has no provider {provider!r}; it has {', '.join(available)}. "
                "For CUDAExecutionProvider, install onnxruntime-gpu."
            )


def _options(
    threads: int | None, config: Mapping[str, str], extra: Mapping[str, Any]
) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; printing it as well helps nobody
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, not {threads}")
        options.intra_op_num_threads = threads
        options.add_session_config_entry(THREADS_KEY, str(threads))
    for name, value in extra.items():
        if name.startswith("_") or not hasattr(options, name) or callable(getattr(options, name)):
            raise UserError(f"onnxruntime.SessionOptions has no setting {name!r}")
        setattr(options, name, value)
    for key, entry in config.items():
        options.add_session_config_entry(key, entry)
    return options


def _register(options: onnxruntime.SessionOptions) -> RuntimeLibraryError | None:
    """Registers the operators; without the library a dense model still runs, so its lack is only returned."""
    try:
        path = library_path()
    except RuntimeLibraryError as error:
        return error
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise RuntimeLibraryError(f"ONNX Runtime cannot load {path}: {error}") from error
    return None


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
