"""What a session holds of its packed weights in memory, once it has run."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import external_data_helper

from sparsify import runtime
from sparsify.lowering.model_file import data_files
from sparsify.runtime.feeds import make_feeds
from sparsify.runtime.joined import is_joined, output_shape, separate, separated
from sparsify.runtime.session import DOMAIN

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ +(.*)")


class Run(NamedTuple):
    """One run of a model.

    Attributes:
        shapes: Shape of the first input of every node, by the node's name.
        resident: Bytes of the packed weights' file in memory afterwards; None where the system does not tell.
    """

    shapes: dict[str, tuple[int, ...]]
    resident: int | None


def run(path: Path, batch: int, threads: int) -> Run:
    """Opens a lowered model, runs it once, and looks.

    Args:
        path: Lowered with its constants in external data.
        batch: Batch size.
        threads: Threads within an operator.
    """
    model = onnx.load(path, load_external_data=False)
    for name in data_files(path):
        _settle(path.parent / name)
    session = runtime.Session(path, threads=threads, profile=True)
    session.run(make_feeds(model, batch))
    resident = _resident(model, path.parent)
    shapes = {row["node"]: tuple(row["inputs"][0]) for row in session.profile() if row["inputs"]}
    for node in filter(is_joined, model.graph.node):
        shapes |= _inside(node, shapes[node.name])
    return Run(shapes, resident)


def _inside(node: onnx.NodeProto, x: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of the first input of every node that one node stands for; that one has a single outer map."""
    values, shapes = {node.input[0]: x}, {}
    for step in separate(node):
        shapes[step.name] = values[step.input[0]]
        values[step.output[0]], _ = output_shape(step, shapes[step.name])
    return shapes


def _settle(file: Path) -> None:
    """Has a new file written to its disk: until then the system keeps pieces of it that straddle tensors."""
    with file.open("rb+") as stream:
        os.fsync(stream)


def _resident(model: onnx.ModelProto, folder: Path) -> int | None:
    """Bytes of packed weights in memory: their shares of mapped pages, and what the model file holds."""
    if sys.platform != "linux":
        return None
    ours = (node for node in model.graph.node if node.domain == DOMAIN)
    names = {name for node in separated(ours) for name in node.input[3:]}
    total = 0
    parts: dict[str, list[tuple[int, int]]] = {}
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            continue
        if not external_data_helper.uses_external_data(tensor):
            total += len(tensor.raw_data)
            continue
        found = external_data_helper.ExternalDataInfo(tensor)
        file = str((folder / found.location).resolve())
        parts.setdefault(file, []).append((found.offset, found.offset + found.length))
    counts = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        mapping = _MAPPING.fullmatch(line)
        if mapping:
            first, last, offset = (int(mapping[i], 16) for i in (1, 2, 3))
            end = offset + last - first
            counts = any(begin < end and offset < stop for begin, stop in parts.get(mapping[4], ()))
        elif counts and line.startswith("Pss:"):
            total += 1024 * int(line.split()[1])
    return total
