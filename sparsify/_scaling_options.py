"""Options that say what scaling is relative to, for `transform` and the studies, and their values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify.errors import UserError

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


BaseStdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--base-std",
        metavar="PARAMETER=STD",
        help="Standard deviation of the base's initial weights, as 'blocks.*=0.02' (pattern); measured on "
        "its weights if not given. Repeatable.",
    ),
]


def resolved(
    options: Mapping[str, Any], traced: Any, *, inputs: Sequence[str], trust_pickle: Any, factory: str | None
) -> dict[str, Any]:
    """Options of `api.transform`: a `base` that is a model file is loaded, `base_std` becomes a mapping.

    Args:
        options: What the command line gave.
        traced: The trace of MODEL, whose parameters `base_std` names.
        inputs: Example inputs of both.
        trust_pickle: Consent, or a question.
        factory: Callable that builds the model of a state_dict file.

    Raises:
        UserError: The file is neither a base nor a model, or a model that was rewritten; or an entry of
            `base_std` names no parameter.
    """
    from sparsify import api, commands
    from sparsify.passes.base_model import base_of

    found = dict(options)
    found["base_std"] = _spreads(options.get("base_std") or (), traced)
    path = options.get("base")
    if path is None or path.suffix == ".json":
        return found
    model = commands.load_model(path, trust_pickle=trust_pickle, factory=factory)
    api.refuse_rewritten(model)
    return {**found, "base": base_of(commands.traced_from(model, inputs))}


def _spreads(entries: Sequence[str], traced: Any) -> dict[str, float]:
    """Parameter names to standard deviations; a pattern stands for all matrices that it fits."""
    parameters = dict(traced.module.named_parameters(remove_duplicate=False))
    found: dict[str, float] = {}
    for entry in entries:
        pattern, sign, text = entry.rpartition("=")
        try:
            std = float(text)
        except ValueError:
            std = math.nan
        if not sign or not 0.0 <= std < math.inf:
            raise typer.BadParameter(
                f"{entry!r} is no parameter with a standard deviation: write 'blocks.*=0.02'",
                param_hint="--base-std",
            )
        fitting = [name for name, one in parameters.items() if one.dim() > 1 and fnmatchcase(name, pattern)]
        chosen = [pattern] if pattern in parameters else fitting
        if not chosen:
            shown = ", ".join([name for name, one in parameters.items() if one.dim() > 1][:5])
            raise UserError(f"--base-std: no matrix of the model fits '{pattern}'; it has {shown}, …")
        found |= dict.fromkeys(chosen, std)
    return found


def summary(scaling: Any, base: Path | None) -> dict[str, Any] | None:
    """What a command's JSON says of the scaling of a model: of `sparsify.scaling.Scaling`, or None."""
    if scaling is None:
        return None
    return {
        "parameterization": scaling.parameterization,
        "density_exponent": scaling.density_exponent,
        "base": None if base is None else str(base),
    }
