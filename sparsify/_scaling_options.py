"""Options of `transform` that say what scaling is relative to, and how its texts become values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="FILE",
        help="Small dense model that the learning rate was tuned on, or its JSON (save_base): the same "
        "architecture at other widths. MODEL itself if not given.",
    ),
]
LrBehindBatchnormOption = Annotated[
    bool, typer.Option("--lr-behind-batchnorm", help="Correct learning rates behind BatchNorm too.")
]
InputMultiplierOption = Annotated[
    float, typer.Option(help="α_in: factor on what embeddings and first layers put out.")
]
OutputMultiplierOption = Annotated[float, typer.Option(help="α_out: factor on what readouts put out.")]


def with_base(
    options: Mapping[str, Any], *, inputs: Sequence[str], trust_pickle: Any, factory: str | None
) -> dict[str, Any]:
    """Options of `api.transform`, where a `base` that is a model file is loaded and traced.

    Raises:
        UserError: The file is neither a base nor a model, or a model that was rewritten.
    """
    from sparsify import api, commands
    from sparsify.passes.base_model import base_of

    path = options.get("base")
    if path is None or path.suffix == ".json":
        return dict(options)
    model = commands.load_model(path, trust_pickle=trust_pickle, factory=factory)
    api.refuse_rewritten(model)
    return {**options, "base": base_of(commands.traced_from(model, inputs))}
