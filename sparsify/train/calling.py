"""Calling a model on a batch: which input goes where, and which output counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparsify.errors import UserError
from sparsify.graph.inputs import InputSpec, TensorInput
from sparsify.masks import SparseGraphModule
from sparsify.train.data import Batch


def output_tensor(output: Any) -> Tensor:
    """The tensor of a model's output that losses and metrics are taken of.

    Args:
        output: A tensor, an output or mapping with `logits`, or a sequence that begins with the tensor; a
            loss before it, a scalar, is passed over.

    Raises:
        UserError: When there is none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Sequence) and not isinstance(output, str):
        loss_first = len(output) > 1 and isinstance(output[0], Tensor) and output[0].dim() == 0
        items = output[1:] if loss_first else output
        if items and isinstance(items[0], Tensor):
            return items[0]
    raise UserError(
        f"the model returns {type(output).__name__}; training needs a tensor, an output with .logits, "
        "or a sequence that begins with the logits"
    )


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """The output tensor of a model on a batch.

    Raises:
        UserError: When the data has other inputs than the model takes.
    """
    return output_tensor(call(model, batch))


def call(model: nn.Module, batch: Batch) -> Any:
    """All that a model returns on a batch.

    Raises:
        UserError: When the data has other inputs than the model takes.
    """
    spec = model.sparsify.inputs if isinstance(model, SparseGraphModule) else None
    if spec is None:
        return model(*batch.args, **batch.kwargs)
    args, kwargs = _arguments(spec, batch)
    return model(*args, **kwargs)


def _arguments(spec: InputSpec, batch: Batch) -> tuple[list[Any], dict[str, Any]]:
    """A graph module's arguments: it takes exactly those that it was traced with.

    Positional inputs of the data fill the tensors of the call in order, whether they were passed by position
    or by name when the model was traced; constants are passed as they were.
    """
    given = list(batch.args)
    missing: list[str] = []

    def value(name: str, item: Any) -> Any:
        if not isinstance(item, TensorInput):
            return item
        if name in batch.kwargs:
            return batch.kwargs[name]
        if not given:
            missing.append(name)
            return None
        return given.pop(0)

    args = [value(name, item) for name, item in zip(spec.names, spec.args, strict=True)]
    kwargs = {name: value(name, item) for name, item in spec.kwargs.items()}
    if missing or given or set(batch.kwargs) - set(spec.names) - set(kwargs):
        raise UserError(
            f"the model takes {', '.join((*spec.names, *kwargs))}; the data gives {len(batch.args)} inputs "
            f"by position and {', '.join(sorted(batch.kwargs)) or 'none'} by name"
        )
    return args, kwargs
