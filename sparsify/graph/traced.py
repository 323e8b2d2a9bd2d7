"""What tracing returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.fx

from sparsify.errors import Refusal


@dataclass(frozen=True)
class KeySource:
    """Where an entry of the canonical state_dict comes from.

    Attributes:
        key: Key in the state_dict of the user's model.
        transposed: Whether the canonical tensor is the transpose of the user's (2-D only).
    """

    key: str
    transposed: bool = False


@dataclass(frozen=True)
class Traced:
    """A captured model in canonical form.

    Attributes:
        module: The canonical graph; its parameters are those of the user's model.
        args: Positional example inputs, with dynamic dimensions of size 1 repeated to 2.
        kwargs: Keyword example inputs, likewise.
        dynamic: The dynamic shapes that were used, in a form that torch.export.export takes again.
        key_map: Canonical state_dict key to its source, for every key.
        ties: Groups of canonical state_dict keys that share one Parameter.
        train_record: JSON-able; module path to what training mode changes there and the graph does not say.
        refusals: What could not be captured: training behaviour, dynamic dimensions.
    """

    module: torch.fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: Any
    key_map: Mapping[str, KeySource]
    ties: tuple[tuple[str, ...], ...]
    train_record: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
