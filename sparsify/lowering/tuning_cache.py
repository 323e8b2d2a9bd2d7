"""Keeps measured times of nodes on disk, so that a model is tuned once on a machine.

One file for each environment (processor, instruction set, threads, versions) holds an entry for each kind of
node: operator, shapes, geometry, fusions, and what of the weight's zeros a kernel's speed depends on. The
weights' values are in no key, so a model that was trained on finds its times again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.cost import Machine
from sparsify.lowering.graph import Graph
from sparsify.runtime.bench_provider import precisions
from sparsify.runtime.cuda import cuda_state
from sparsify.runtime.environment import cpu_model
from sparsify.runtime.library import library_path, tuned_cache, tuned_deep

VARIABLE = "SPARSIFY_CACHE"
"""Environment variable that names the cache's folder."""

_FORMAT = 1


def cache_folder() -> Path:
    """Folder of the cache: `$SPARSIFY_CACHE`, else `sparsify` in the system's folder for caches."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "sparsify"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "sparsify" / "cache"
    return Path.home() / ".cache" / "sparsify"


def environment_of(machine: Machine) -> dict[str, Any]:
    """Everything besides the node that a time depends on.

    Args:
        machine: Instruction set and threads that were measured with, and where.
    """
    content = library_path().read_bytes()
    gpu: dict[str, Any] = {}
    if machine.target == "cuda":
        gpu = {"gpu": cuda_state().device, **precisions(machine.target)}
    return gpu | {
        "cpu": cpu_model(),
        "kernel": machine.kernel,
        "tuned_for": [tuned_cache(1), tuned_cache(2), tuned_deep()],
        "threads": machine.threads,
        "library": hashlib.sha256(content).hexdigest()[:16],
        "onnxruntime": onnxruntime.__version__,
    }


def describe(
    graph: Graph, candidate: Candidate, storage: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What the time of a node depends on: the key of its entry.

    Args:
        graph: Index of the source model.
        candidate: A candidate, fused or not.
        storage: Entries that each applicable layout stores.
        shapes: Shapes of the graph's values.
    """
    counts = np.count_nonzero(candidate.weight.reshape(len(candidate.weight), -1), axis=1)
    mean = max(float(counts.mean()), 1e-9)
    nodes = sorted(candidate.consumed)
    return {
        "operators": [graph.nodes[index].op_type for index in nodes],
        "opset": graph.opset,
        "type": graph.types.get(candidate.x, 0),
        "x": list(shapes[candidate.x]),
        "weight": [int(dim) for dim in candidate.weight.shape],
        "density": round(candidate.density, 2 if candidate.density > 0.1 else 3),
        "unevenness": round(float(counts.std()) / mean, 1),
        "stored": {layout: round(count / max(storage["csr"], 1), 2) for layout, count in storage.items()},
        "geometry": str(candidate.geometry),
        "steps": str((candidate.before, candidate.after)),
        "bias": candidate.bias is not None,
        "residual": candidate.residual is not None,
        "addend": candidate.addend is not None,
        "activation": candidate.activation,
    }


class TuningCache:
    """Times by node; every new one is written at once, whole or not at all.

    Args:
        environment: See `environment_of`.
        folder: Where the file lies; None keeps everything in memory.
    """

    def __init__(self, environment: Mapping[str, Any], folder: Path | None) -> None:
        self._environment = dict(environment)
        self._path = None if folder is None else folder / f"tune-{_digest(environment)}.json"
        self._entries = {} if self._path is None else self._read(self._path)

    def get(self, about: Mapping[str, Any], sides: set[str]) -> dict[str, float] | None:
        """Seconds of the sides of a node's comparison, or None where one was not measured.

        Args:
            about: See `describe`.
            sides: "dense" and layouts.
        """
        entry = self._entries.get(_digest(about), {})
        seconds = entry.get("seconds", {}) if entry.get("about") == dict(about) else {}
        return {side: float(seconds[side]) for side in sides} if sides <= set(seconds) else None

    def put(self, about: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        """Stores a node's times; a folder that cannot be written is a warning.

        Args:
            about: See `describe`.
            seconds: Median seconds of each side.
        """
        self._entries[_digest(about)] = {"about": dict(about), "seconds": dict(seconds)}
        if self._path is None:
            return
        try:
            self._write(self._path)
        except OSError as error:
            warnings.warn(f"measured times are not kept: {self._path}: {error.strerror}", stacklevel=2)
            self._path = None

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, ValueError):  # what another process wrote meanwhile
            self._entries = _checked(path.read_text(encoding="utf-8")) | self._entries
        content = {"format": _FORMAT, "environment": self._environment, "nodes": self._entries}
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> dict[str, dict[str, Any]]:
        try:
            return _checked(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            warnings.warn(f"the tuning cache {path} is damaged and made anew ({error})", stacklevel=3)
            return {}


def _checked(text: str) -> dict[str, dict[str, Any]]:
    """The entries of a cache file.

    Raises:
        ValueError: It is no such file.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError("not of this format")
    nodes = content.get("nodes")
    if not isinstance(nodes, dict) or not all(_is_entry(entry) for entry in nodes.values()):
        raise ValueError("an entry is no measurement")
    return nodes


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("about"), dict):
        return False
    seconds = entry.get("seconds")
    return isinstance(seconds, dict) and all(
        isinstance(value, float) and math.isfinite(value) and value > 0 for value in seconds.values()
    )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
