"""Times a whole model beside its dense baseline."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sparsify.errors import UserError
from sparsify.runtime.bench_provider import call_of, check_bench_provider, precisions
from sparsify.runtime.environment import environment
from sparsify.runtime.feeds import Array, make_feeds
from sparsify.runtime.node_profile import annotate, sparse_weights
from sparsify.runtime.roofline import measure_roofline
from sparsify.runtime.session import Session
from sparsify.runtime.timing import interleave
from sparsify.runtime.zero_filled import sparse_nodes, zero_filled

FAMILY_KEY = "sparsify.family"
_SAME_SHAPE_FAMILIES = ("", "masked")
_EXTERNAL_DATA_FROM = 1 << 30
_PROFILE_ROUNDS = 4
_PROFILE_RUNS = 6
_PROFILE_PAUSE = 0.05


@dataclass(frozen=True)
class _Baseline:
    kind: str
    file: str | None
    session_path: Path | None
    reason: str | None = None
    comparable: bool = False

    def to_json(self) -> dict[str, Any]:
        described: dict[str, Any] = {"kind": self.kind, "file": self.file}
        return described if self.reason is None else described | {"reason": self.reason}


def bench(
    model: str | Path,
    *,
    baseline: str | Path | None = None,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    duration: float = 4.0,
    warmup: int = 5,
    profile: bool = False,
    sizes: Mapping[str, int] | None = None,
    provider: str = "cpu",
) -> dict[str, Any]:
    """Times an ONNX model and its dense baseline in one process, in alternating blocks.

    The baseline is the file given. Else, a model whose sparse layers have the shapes of the dense ones is
    compared with itself in standard operators, zeros in place. A model of another family (wide, ...) has no
    honest baseline but the original dense model: it is timed alone.

    Args:
        model: ONNX file.
        baseline: The original dense model, with the same inputs.
        batches: Batch sizes.
        threads: Thread counts within an operator.
        duration: Seconds for each model, batch size and thread count.
        warmup: Calls before anything is counted.
        profile: Also time every node of both models, at the first batch size and thread count.
        sizes: Sizes of dynamic dimensions beyond the batch, by symbol; 128 where not given.
        provider: "cpu", or "cuda": on the GPU, with inputs and outputs in its memory. Dense products use TF32
            there, which is ONNX Runtime's default.

    Returns:
        `environment`, `provider`, `precision{dense, sparse}`, `baseline{kind, file}` (kind `original`,
        `zero-filled` or `none`), `results[{model, batch, threads, latency_ms, throughput, speedup}]` where
        `model` is "model" or "baseline", throughput is examples a second and speedup the baseline's median
        over this one's (None without a baseline), `speedup` (the smallest of the model's, else None),
        `max_abs_error` (None where outputs differ by design: a wide model beside its dense original). With
        `profile` also `profile` and `baseline_profile`, rows of `node_profile.annotate`, longest first, and
        `roofline{gflops, gbytes, threads, how}`.

    Raises:
        UserError: A file is missing or does not fit, a batch size or thread count is not positive, or this
            ONNX Runtime has no such provider.
        RuntimeLibraryError: The native library is missing or refuses the model, or the provider does not
            start.
    """
    providers = check_bench_provider(provider, profile)
    if not batches or not threads or min(*batches, *threads, 1) < 1:
        raise UserError("batch sizes and thread counts must be at least 1")
    path = _existing(model)
    graph = _load(path, weights=False)
    with _find_baseline(path, graph, baseline) as reference:
        rows: list[dict[str, Any]] = []
        errors: list[float] = []
        for count in threads:
            sessions = {"model": Session(path, threads=count, providers=providers)}
            if reference.session_path is not None:
                sessions["baseline"] = Session(reference.session_path, threads=count, providers=providers)
            for batch in batches:
                feeds = make_feeds(graph, batch, sizes=sizes)
                outputs = {name: session.run(feeds) for name, session in sessions.items()}
                if reference.comparable:
                    errors.append(_max_abs_error(outputs["model"], outputs["baseline"]))
                calls = {name: call_of(session, feeds, provider) for name, session in sessions.items()}
                rows.extend(_time(calls, batch, count, duration, warmup))
        profiles: dict[str, Any] = {}
        if profile:
            feeds = make_feeds(graph, batches[0], sizes=sizes)
            profiles = _profile(path, reference.session_path, feeds, threads[0])
    report: dict[str, Any] = {
        "environment": environment(),
        "provider": provider,
        "precision": precisions(provider),
        "baseline": reference.to_json(),
        "results": rows,
        "speedup": min(
            (row["speedup"] for row in rows if row["speedup"] and row["model"] == "model"), default=None
        ),
        "max_abs_error": max(errors, default=None),
    }
    return report | profiles


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise UserError(f"there is no file {str(path)!r}")
    return Path(path)


def _load(path: Path, *, weights: bool) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=weights)
    except Exception as error:  # protobuf's errors have no base class that its releases share
        raise UserError(f"{path} is no ONNX model: {error}") from error


@contextmanager
def _find_baseline(path: Path, graph: onnx.ModelProto, given: str | Path | None) -> Iterator[_Baseline]:
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    family = metadata.get(FAMILY_KEY, "")
    if given is not None:
        original = _existing(given)
        yield _Baseline("original", str(given), original, comparable=family in _SAME_SHAPE_FAMILIES)
    elif family not in _SAME_SHAPE_FAMILIES:
        reason = f"a {family} model compares with the original dense model only: give it as baseline"
        yield _Baseline("none", None, None, reason)
    elif not sparse_nodes(graph):
        yield _Baseline("none", None, None, "the model has no sparse operators: there is nothing to compare")
    else:
        with tempfile.TemporaryDirectory() as folder:
            twin = zero_filled(_load(path, weights=True))
            file = Path(folder) / "zero-filled.onnx"
            onnx.save(twin, file, save_as_external_data=twin.ByteSize() > _EXTERNAL_DATA_FROM)
            yield _Baseline("zero-filled", None, file, comparable=True)


def _time(
    calls: Mapping[str, Callable[[], object]],
    batch: int,
    threads: int,
    duration: float,
    warmup: int,
) -> list[dict[str, Any]]:
    timings = dict(zip(calls, interleave(list(calls.values()), seconds=duration, warmup=warmup), strict=True))
    base = timings.get("baseline")
    return [
        {
            "model": name,
            "batch": batch,
            "threads": threads,
            "latency_ms": timing.latency_ms(),
            "throughput": batch / timing.median,
            "speedup": None if base is None else base.median / timing.median,
        }
        for name, timing in timings.items()
    ]


def _max_abs_error(got: Mapping[str, Array], want: Mapping[str, Array]) -> float:
    """Compares outputs by name.

    Raises:
        UserError: The two models' outputs have other names or shapes.
    """
    for name, value in want.items():
        if name not in got or got[name].shape != value.shape:
            raise UserError(
                f"the baseline's output {name!r} of shape {value.shape} is none of the model's outputs"
            )
    return max(float(np.abs(got[name] - value).max(initial=0)) for name, value in want.items())


def _profile(path: Path, baseline: Path | None, feeds: dict[str, Array], threads: int) -> dict[str, Any]:
    """Profiles both models in alternating blocks of runs."""
    files = {"profile": path} | ({} if baseline is None else {"baseline_profile": baseline})
    sessions = {name: Session(file, threads=threads, profile=True) for name, file in files.items()}
    for _ in range(_PROFILE_ROUNDS):
        for session in sessions.values():
            time.sleep(_PROFILE_PAUSE)
            for _ in range(_PROFILE_RUNS):
                session.run(feeds)
    rows = {name: session.profile() for name, session in sessions.items()}
    model = _load(path, weights=True)
    roofline = measure_roofline(threads, sum(tensor.ByteSize() for tensor in model.graph.initializer))
    dense = annotate(rows.get("baseline_profile", ()), {}, roofline)
    own = annotate(rows["profile"], sparse_weights(model), roofline, dense)
    found: dict[str, Any] = {"profile": own, "roofline": roofline.to_dict()}
    return found if baseline is None else found | {"baseline_profile": dense}
