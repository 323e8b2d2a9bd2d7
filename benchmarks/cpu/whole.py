"""Times whole networks: the dense file with zeros in place beside what `lower` makes of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.cpu.cells import Cell
from benchmarks.cpu.layers import vector_bytes
from benchmarks.cpu.rounds import compare
from benchmarks.cpu.work import work_of
from sparsify import lowering, runtime
from sparsify.runtime.feeds import make_feeds
from sparsify.runtime.node_profile import Weights, product_of, sparse_weights

_PROFILE_ROUNDS = 2
_PROFILE_RUNS, _PROFILE_RUNS_OF_FAST, _FAST_MS = 2, 6, 100.0
_SLOWER = 1.05


def time_network(
    cell: Cell, plain: Path, seconds: float, *, original: Path | None = None
) -> list[dict[str, Any]]:
    """One row for every batch size, of one lowered file that is made for all of them.

    Args:
        cell: With one sparsity.
        plain: The network in standard operators, zeros in place.
        seconds: For each side and batch size.
        original: What it is compared with; `plain` itself when None.
    """
    with tempfile.TemporaryDirectory() as made:
        lowered = Path(made) / "lowered.onnx"
        report = lowering.lower(plain, lowered, tune=cell.tune, threads=cell.threads, batches=cell.batches)
        files = {"dense": original or plain, "sparse": lowered}
        if original is None and not report.nodes.sparse:
            del files["sparse"]  # it is the dense file
        shared = {
            "sparsity": cell.sparsities[0],
            "nodes": {"sparse": report.nodes.sparse, "dense": report.nodes.dense},
            "layouts": layouts(report),
            "bytes": {"dense": files["dense"].stat().st_size, "lowered": report.bytes},
            "max_abs_error": report.max_abs_error,
        }
        weights = sparse_weights(onnx.load(lowered))
        sessions = {name: runtime.Session(file, threads=cell.threads) for name, file in files.items()}
        rows = []
        for batch in cell.batches:
            feeds = make_feeds(onnx.load(plain, load_external_data=False), batch)
            found = compare(_calls(sessions, feeds), seconds)
            runs = _PROFILE_RUNS_OF_FAST if found["ms"]["dense"] < _FAST_MS else _PROFILE_RUNS
            at = list(files)[-1]
            profiles = _profiles(files, cell.threads, feeds, runs)
            rows.append(
                shared
                | {"batch": batch, "dense_ms": found["ms"]["dense"], "sparse_ms": found["ms"][at]}
                | {"speedup": found["speedup"][at], "range": found["range"][at]}
                | {"works": _works(profiles[at], weights), "size": report.bytes}
                | {"slower": slower_nodes(profiles["dense"], profiles[at], weights)}
            )
    return rows


def layouts(report: lowering.LowerReport) -> dict[str, int]:
    """How many nodes there are in every layout."""
    found = [layer.layout or "dense" for layer in report.layers]
    return {layout: found.count(layout) for layout in sorted(set(found))}


def _calls(
    sessions: Mapping[str, runtime.Session], feeds: dict[str, np.ndarray[Any, Any]]
) -> dict[str, Callable[[], object]]:
    return {name: partial(session.raw.run, None, feeds) for name, session in sessions.items()}


def _profiles(
    files: Mapping[str, Path], threads: int, feeds: Mapping[str, Any], runs: int
) -> dict[str, list[dict[str, Any]]]:
    """Times of every node of both files, in alternating blocks of runs."""
    sessions = {name: runtime.Session(file, threads=threads, profile=True) for name, file in files.items()}
    for _ in range(_PROFILE_ROUNDS):
        for session in sessions.values():
            time.sleep(0.05)
            for _ in range(runs):
                session.run(feeds)
    return {name: session.profile() for name, session in sessions.items()}


def _works(rows: Sequence[Mapping[str, Any]], weights: Weights) -> list[dict[str, Any]]:
    return [work.to_json() for work in work_of(rows, weights, vector_bytes())]


def slower_nodes(
    dense: Sequence[Mapping[str, Any]],
    sparse: Sequence[Mapping[str, Any]],
    weights: Weights,
) -> list[dict[str, Any]]:
    """Sparse nodes that take longer than the same products of the dense file in the mean, slowest first.

    Args:
        dense: Rows of `Session.profile` of the dense file.
        sparse: The same of the lowered file.
        weights: Weights of its sparse nodes.
    """
    known: dict[object, list[float]] = {}
    for row in dense:
        product = product_of(row, {})
        if product is not None:
            known.setdefault(product.key, []).append(row["us"])
    found = []
    for row in sparse:
        product = product_of(row, weights)
        if product is None or row["node"] not in weights:
            continue
        before = [known.get(part.key) for part in product.parts or (product,)]
        means = [sum(times) / len(times) for times in before if times]
        if len(means) < len(before):
            continue
        beside = sum(means)
        if row["us"] > _SLOWER * beside:
            about = {"node": row["node"], "shape": list(product.weight), "columns": product.columns}
            about |= {"layout": product.decision, "us": row["us"], "dense_us": beside}
            found.append(about)
    return sorted(found, key=lambda entry: entry["dense_us"] - entry["us"])
