"""Reads what ONNX Runtime's profiler wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_SUFFIX = "_kernel_time"


def node_times(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The time of every node, longest first.

    Args:
        events: Content of the profiler's file.

    Returns:
        Rows with `node`, `op`, `calls`, `us` (microseconds that a quarter of the calls stay below: other
        processes only ever add), `share` (of the sum), `inputs` and `outputs`: shapes as the node saw them at
        its last call, without the weights that ONNX Runtime packed.
    """
    times: dict[tuple[str, str, str], list[float]] = {}
    seen: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            details = event["args"]
            key = (name.removesuffix(_SUFFIX), details["op_name"], str(details.get("node_index", "")))
            times.setdefault(key, []).append(float(event["dur"]))
            seen[key] = details
    typical = {key: float(np.percentile(durations, 25)) for key, durations in times.items()}
    total = max(sum(typical.values()), 1e-9)
    rows = [
        {
            "node": key[0],
            "op": key[1],
            "calls": len(times[key]),
            "us": microseconds,
            "share": microseconds / total,
            "inputs": _shapes(seen[key].get("input_type_shape")),
            "outputs": _shapes(seen[key].get("output_type_shape")),
        }
        for key, microseconds in typical.items()
    ]
    return sorted(rows, key=lambda row: -row["share"])


def _shapes(described: Any) -> list[list[int]]:
    """`[{"float": [3, 128]}, …]` as shapes."""
    if not isinstance(described, list):
        return []
    return [list(shape) for entry in described for shape in entry.values()]
