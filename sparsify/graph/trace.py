"""From a user's nn.Module to `Traced`: torch.export, then the canonical form."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map_with_path

from sparsify.errors import Refusal, UnsupportedModelError, UserError
from sparsify.graph.canonical import canonicalise
from sparsify.graph.canonical_clean import is_open
from sparsify.graph.prepare import pruned, traceable
from sparsify.graph.traced import KeySource, Traced
from sparsify.graph.train_mode import RULE, align, needs_train_trace, train_record

_TORCH = str(Path(torch.__file__).parent)


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
    args, kwargs, dynamic_shapes = _by_position(model, tuple(args), dict(kwargs or {}), dynamic_shapes)
    if dynamic_shapes is None and dynamic:
        wide_args, wide_kwargs = _repeat(args, kwargs)
        shapes: Any = {
            name: _open_dims(name, item) for name, item in _bind(model, wide_args, wide_kwargs).items()
        }
    else:
        shapes, wide_args, wide_kwargs = dynamic_shapes, args, kwargs
    with traceable(model) as prepared:
        ep = _export(prepared, wide_args, wide_kwargs, shapes)
    record, refusals = train_record(model), _closed_dims(ep, shapes)
    if needs_train_trace(model):
        aligned, refused = _train_trace(model, ep, wide_args, wide_kwargs, shapes)
        record |= aligned
        refusals += refused
    canonical = canonicalise(ep, train_record=record)
    canonical.module.train(model.training)
    return Traced(
        module=canonical.module,
        args=wide_args,
        kwargs=wide_kwargs,
        dynamic=shapes,
        key_map=_through_pruning(model, canonical.key_map),
        ties=canonical.ties,
        train_record=train_record(canonical.module),
        refusals=tuple(refusals),
    )


def _by_position(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Takes keyword inputs by position where forward knows none of their names (`--input 'x:…'`)."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if args or not kwargs or anything or set(kwargs) & set(named) or len(kwargs) > len(positional):
        return args, kwargs, shapes
    if isinstance(shapes, dict):
        shapes = {to: shapes[name] for to, name in zip(positional, kwargs, strict=False) if name in shapes}
    return tuple(kwargs.values()), {}, shapes


def _bind(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Inputs by the name of forward's parameter, as torch.export names them."""
    try:
        return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise UserError(f"the example does not fit {type(model).__name__}.forward: {error}") from error


def _dims(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Dimensions that are left open: the batch, and the length of integer and mask inputs."""
    integral = not tensor.is_floating_point() and not tensor.is_complex()
    masked = "mask" in name and tensor.ndim == 2
    return tuple(range(min(tensor.ndim, 2 if integral or masked else 1)))


def _open_dims(name: str, item: Any) -> Any:
    def of_leaf(path: Any, leaf: Any) -> Any:
        label = name + "".join(str(key) for key in path)
        return dict.fromkeys(_dims(label, leaf), Dim.AUTO) if isinstance(leaf, Tensor) else None

    return tree_map_with_path(of_leaf, item)


def _repeat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example with open dimensions of size 1 repeated to 2."""

    def of_leaf(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        label = "".join(str(key) for key in path)
        for dim in _dims(label, leaf):
            if leaf.shape[dim] == 1:
                leaf = torch.cat([leaf, leaf], dim)
        return leaf

    return tree_map_with_path(of_leaf, args), tree_map_with_path(of_leaf, kwargs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch.export's talk about what this package handles itself."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx.experimental.symbolic_shapes")]
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


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ExportedProgram:
    try:
        with _quiet():
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        _check_runs(model, args, kwargs)
        where = _where(model, error.__traceback__)
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(
            f"torch.export could not capture {type(model).__name__}{where}: {said[0][:400]}\n{_advice(error)}"
        ) from error


def _check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.no_grad():
            model(*args, **kwargs)
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
    model: nn.Module, evaluated: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> tuple[dict[str, Any], list[Refusal]]:
    try:
        with traceable(model, training=True) as prepared:
            trained = _export(prepared, args, kwargs, shapes)
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
