"""From a user's nn.Module to `Traced`: torch.export, then the canonical form."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sparsify.errors import Refusal, UnsupportedModelError, UserError
from sparsify.graph.canonical import canonicalise
from sparsify.graph.canonical_clean import is_open
from sparsify.graph.example import Example
from sparsify.graph.prepare import pruned, traceable
from sparsify.graph.traced import KeySource, Traced
from sparsify.graph.train_mode import RULE, align, needs_train_trace, train_record
from sparsify.graph.train_probe import same_in_training

_TORCH = str(Path(torch.__file__).parent)
_TALKATIVE = (
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "torch._subclasses.fake_tensor",
)


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic: bool = True,
    dynamic_shapes: Any = None,
) -> Traced:
    """Captures a model as a canonical graph whose parameters are the model's own.

    The graph is traced in eval mode and switches with train() and eval(). The model is left as it was.

    Args:
        model: Any module that torch.export can capture.
        args: Example of its positional inputs.
        kwargs: Example of its keyword inputs.
        dynamic: Leave dimension 0 of every tensor input open, and dimension 1 of integer and mask inputs. An
            example of size 1 there is repeated to 2, because export takes size 1 for a constant.
        dynamic_shapes: In place of `dynamic`, what torch.export.export takes.

    Raises:
        UserError: When the model does not run on the example.
        UnsupportedModelError: When torch.export cannot capture it: what, where, and what to try.
    """
    example, asked = Example.of(model, args, kwargs, dynamic_shapes)
    ep, example, shapes = _capture(model, example, asked, dynamic)
    record, refusals = train_record(model), _closed_dims(ep, shapes)
    if needs_train_trace(model):
        probed = same_in_training(model, example)
        aligned, refused = _train_trace(model, ep, example, shapes) if probed is None else (probed, [])
        record |= aligned
        refusals += refused
    canonical = canonicalise(ep, train_record=record)
    canonical.module.train(model.training)
    return Traced(
        module=canonical.module,
        args=example.args,
        kwargs=example.kwargs,
        dynamic=shapes,
        key_map=_through_pruning(model, canonical.key_map),
        ties=canonical.ties,
        train_record=train_record(canonical.module),
        refusals=tuple(refusals),
    )


def _capture(
    model: nn.Module, example: Example, asked: Any, dynamic: bool
) -> tuple[ExportedProgram, Example, Any]:
    """Exports with open dimensions of size 1 repeated, or with the example as it is where the model minds."""
    wide, shapes = example.opened(asked, dynamic)
    try:
        with traceable(model) as prepared:
            return _export(prepared, wide, shapes), wide, shapes
    except (UnsupportedModelError, UserError):
        if wide is example:
            raise
    with traceable(model) as prepared:
        return _export(prepared, example, shapes), example, shapes


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch.export's talk about what this package handles itself."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _export(model: nn.Module, example: Example, shapes: Any) -> ExportedProgram:
    args, kwargs = example.args, example.kwargs
    # Where it fails, torch.export prints the graph so far on stderr.
    said_by_torch = io.StringIO()
    try:
        with _quiet(), redirect_stderr(said_by_torch):
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        sys.stderr.write(said_by_torch.getvalue())
        return program
    except Exception as error:
        _check_runs(model, example)
        where = _where(model, error.__traceback__)
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"torch.export could not capture {type(model).__name__}{where}: {said[0][:400]}\n{_advice(error)}"
        ) from error


def _check_runs(model: nn.Module, example: Example) -> None:
    try:
        with torch.no_grad():
            model(*example.args, **example.kwargs)
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} fails on the example itself{_where(model, error.__traceback__)}: "
            f"{error}\n"
            "The example must be what the model is called with; open dimensions of size 1 are repeated to 2 "
            "(pass dynamic=False to keep them)"
        ) from error


def _where(model: nn.Module, traceback: TracebackType | None) -> str:
    """Module path and source line of the innermost frame of a traceback that lies in the model's own code."""
    paths = {id(module): path for path, module in model.named_modules()}
    module = line = ""
    while traceback is not None:
        frame = traceback.tb_frame
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in paths:
            module = paths[id(owner)] or type(owner).__name__
        if not frame.f_code.co_filename.startswith(_TORCH) and module:
            line = f"{frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return f" at {module} ({line})" if module else ""


def _advice(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if "data-dependent" in text or "datadependent" in text or "unbacked" in text:
        return (
            "The Python code there branches on the value of a tensor. Replace the branch by "
            "torch.where, or the "
            "value by a constant."
        )
    if "constraint" in text or "dynamic" in text or "specializ" in text:
        return "A dimension that was to be open is fixed by the model. Pass dynamic=False, or dynamic_shapes."
    if "pytree" in text or "unsupported" in text or "input type" in text:
        return (
            "Pass and return tensors, numbers, tuples, lists and dicts; wrap the model where it takes others."
        )
    return "Try dynamic=False, another example, or the part of the model that holds its layers."


def _closed_dims(ep: ExportedProgram, shapes: Any) -> list[Refusal]:
    """Names batch dimensions that were to be open and that the model fixed."""
    if not isinstance(shapes, dict):
        return []
    refusals = []
    for name, spec in shapes.items():
        node = next((n for n in ep.graph.nodes if n.op == "placeholder" and n.name == name), None)
        fake = node.meta.get("val") if node is not None else None
        if not isinstance(spec, dict) or not isinstance(fake, Tensor):
            continue
        for dim, wish in spec.items():
            if wish == Dim.AUTO and isinstance(dim, int) and not is_open(fake.shape[dim]):
                reason = f"the model only takes size {fake.shape[dim]} in dimension {dim} of this input"
                refusals.append(Refusal(name, "fixed-dimension", reason))
    return refusals


def _train_trace(
    model: nn.Module, evaluated: ExportedProgram, example: Example, shapes: Any
) -> tuple[dict[str, Any], list[Refusal]]:
    try:
        with traceable(model, training=True) as prepared:
            trained = _export(prepared, example, shapes)
        return align(evaluated, trained)
    except (UnsupportedModelError, UserError) as error:
        reason = (
            f"it could not be traced in training mode ({error}), so training may differ from the original"
        )
        return {}, [Refusal("", RULE, reason)]


def _through_pruning(model: nn.Module, key_map: Any) -> dict[str, KeySource]:
    """Names `weight_orig` as the source of a parameter that was pruned."""
    folded = {(f"{path}.{name}" if path else name) for path, _, name in pruned(model)}
    return {
        key: KeySource(f"{source.key}_orig", source.transposed) if source.key in folded else source
        for key, source in key_map.items()
    }
