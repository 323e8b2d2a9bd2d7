"""Brings any model into an exported program in evaluation mode, with the inputs it was captured on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsify.errors import UnsupportedModelError, UserError
from sparsify.graph.trace import trace
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import verify_masks
from sparsify.passes.merge import merge


@dataclass(frozen=True)
class Captured:
    """A model ready for the ONNX exporter.

    Attributes:
        module: What the file is compared with: the model in evaluation mode on the CPU, nothing of it merged.
        program: Its exported program.
        args: Positional inputs of the capture.
        kwargs: Keyword inputs of the capture.
        family: Family of the plan that the model was rewritten by, "" where it was not.
    """

    module: nn.Module
    program: torch.export.ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    family: str


@contextmanager
def captured(
    model: nn.Module, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> Iterator[Captured]:
    """Captures a model; its training flags are put back afterwards.

    Args:
        model: A transformed or loaded model, a traced module, or a plain one.
        args: Example inputs; may be None where the model carries its own.
        kwargs: Keyword example inputs.

    Raises:
        SparsifyError: A weight outside its mask is not zero.
        UserError: Example inputs are needed.
        UnsupportedModelError: torch.export cannot capture the model.
    """
    verify_masks(model)
    if any(tensor.device.type != "cpu" for tensor in [*model.parameters(), *model.buffers()]):
        model = copy.deepcopy(model).cpu()
    with _evaluating(model):
        yield _capture(model, args, kwargs)


def _capture(model: nn.Module, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> Captured:
    record = model.sparsify if isinstance(model, SparseGraphModule) else None
    merged = merge(model) if isinstance(model, SparseGraphModule) else model
    if record is not None and args is None and not kwargs:
        example_args, example_kwargs = record.inputs.example()
        dynamic = record.inputs.dynamic_shapes()
        exported: nn.Module = merged
    elif args is None and not kwargs:
        raise UserError(
            "this model carries no example inputs: pass them, as in export(model, path, args=(x,)); "
            "models from transform() and load() of our archives carry theirs"
        )
    else:
        traced = trace(merged, tuple(args or ()), dict(kwargs or {}))
        exported, example_args, example_kwargs = traced.module, traced.args, traced.kwargs
        dynamic = traced.dynamic
        exported.eval()
    example_kwargs = _in_signature_order(exported, example_kwargs)
    try:
        program = torch.export.export(
            exported, example_args, example_kwargs, dynamic_shapes=dynamic, strict=False
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedModelError(f"torch.export cannot capture the model: {error}") from error
    plan = None if record is None else record.plan
    return Captured(
        exported if record is None else model,
        program,
        tuple(example_args),
        dict(example_kwargs),
        "" if plan is None else str(plan.options.family),
    )


def _in_signature_order(module: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword inputs in the order that torch.export flattens them in."""
    order = list(inspect.signature(module.forward).parameters)
    return dict(
        sorted(kwargs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
