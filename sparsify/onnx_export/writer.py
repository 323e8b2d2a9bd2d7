"""torch → ONNX: capture, convert, check against torch, then lower or write as it is."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.utils import _pytree

from sparsify.errors import UnsupportedModelError, UserError
from sparsify.lowering import LowerReport, lower
from sparsify.lowering.graph import Graph
from sparsify.lowering.inputs import SIZES, random_inputs
from sparsify.lowering.model_file import publish, staged
from sparsify.lowering.parity import compare
from sparsify.onnx_export.capture import Captured, captured
from sparsify.onnx_export.names import output_names, tensors_of
from sparsify.onnx_export.tidy import tidy
from sparsify.runtime import Session

_DISTRIBUTION = "sparsify-ift"
_TALKATIVE = ("torch.onnx", "onnxscript.optimizer._constant_folding")


def export(
    model: nn.Module,
    path: str | Path,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dense: bool = False,
) -> LowerReport:
    """Writes a model as ONNX, with sparse operators where they are faster or in plain operators.

    Args:
        model: A transformed or loaded model, a traced module, or a plain one.
        path: File to write; appears whole or not at all.
        args: Example inputs; not needed where the model carries its own.
        kwargs: Keyword example inputs.
        dense: Keep zeros in place and use standard operators only.

    Returns:
        What became of every weight-bearing node, and the largest absolute error against torch.

    Raises:
        ParityError: The file's outputs differ from torch's by more than rounding explains.
        UserError: Example inputs are needed, or the path cannot be written.
        UnsupportedModelError: The model cannot be captured or converted.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise UserError(f"{target}: the folder {target.parent} does not exist")
    with captured(model, args, kwargs) as capture:
        proto, results = _convert(capture)
        feeds, expected = _reference(capture, proto, given=args is not None or bool(kwargs))
    with tempfile.TemporaryDirectory(prefix=".sparsify-", dir=target.parent) as folder:
        plain, finished = Path(folder) / "plain.onnx", Path(folder) / target.name
        with staged(proto, plain) as beside:
            onnx.checker.check_model(str(beside))
        report = lower(plain, finished, layout="dense" if dense else None, inputs=feeds)
        actual = Session(finished).run(feeds)
        outputs = dict(zip(results, expected, strict=True))
        error = compare(outputs, actual, what="exported model against torch")
        publish(finished, target)
    return replace(report, max_abs_error=error)


def _convert(capture: Captured) -> tuple[onnx.ModelProto, list[str]]:
    """Converts the captured program; returns the model and its output names."""
    inputs = list(capture.program.graph_signature.user_inputs)
    results = output_names(
        _call(capture.module, capture.args, capture.kwargs), [str(name) for name in inputs]
    )
    with _quiet():
        try:
            program = torch.onnx.export(
                capture.program, dynamo=True, output_names=results, external_data=False, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise UnsupportedModelError(f"torch.onnx cannot convert the model: {error}") from error
    if program is None:
        raise UnsupportedModelError("torch.onnx returned no model")
    proto: onnx.ModelProto = program.model_proto
    properties = {"sparsify.version": metadata.version(_DISTRIBUTION)}
    tidy(proto, properties | ({"sparsify.family": capture.family} if capture.family else {}))
    return proto, results


def _reference(
    capture: Captured, proto: onnx.ModelProto, *, given: bool
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Inputs for the check and what torch makes of them.

    Args:
        capture: The captured model.
        proto: Its ONNX form.
        given: Whether the capture's inputs are the caller's own; otherwise random ones are drawn.
    """
    graph = Graph(proto)
    leaves, spec = _pytree.tree_flatten((capture.args, capture.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    names = [value.name for value in proto.graph.input]
    if len(names) != len(places):
        raise UnsupportedModelError(
            f"the ONNX model has inputs {names}, but the example holds {len(places)} tensors; "
            "pass every input as a tensor"
        )
    if given:
        feeds = {name: leaves[i].detach().numpy() for name, i in zip(names, places, strict=True)}
        return feeds, _arrays(_call(capture.module, capture.args, capture.kwargs))
    problem: Exception | None = None
    for batch, other in SIZES:
        feeds = random_inputs(graph, batch=batch, other=other)
        for name, i in zip(names, places, strict=True):
            leaves[i] = torch.from_numpy(feeds[name])
        args, kwargs = _pytree.tree_unflatten(leaves, spec)
        try:
            return feeds, _arrays(_call(capture.module, args, kwargs))
        except (RuntimeError, ValueError, IndexError) as error:
            problem = problem or error
    raise UserError(f"no random inputs that the model runs on were found; pass args=… ({problem})")


def _call(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        return module(*args, **kwargs)


def _arrays(result: Any) -> list[np.ndarray]:
    return [tensor.detach().numpy() for tensor in tensors_of(result)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off the terminal what the exporter says of packages, and of nodes that it could not fold."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
