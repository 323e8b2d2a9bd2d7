"""The coordinate check: do activations keep their size when density or width changes?

Under a parameterization whose hyper-parameters transfer, the mean |activation| behind every layer is the same
at every density and width, before training and after each of the first steps (arXiv 2203.03466, appendix D.1;
for density arXiv 2405.15743, figure 5). A wrong rule for initial weights shows at step 0, a wrong one for
learning rates some steps later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sparsify.errors import UserError
from sparsify.graph.traced import Traced
from sparsify.passes.scaled import ScalingOptions
from sparsify.scaling import Base, Parameterization
from sparsify.train.coord_check_data import DataBatches, RandomBatches, Source
from sparsify.train.coord_check_plot import plot_check
from sparsify.train.coord_check_runs import Measured, Runs, Settings
from sparsify.train.coord_check_slopes import FLAT, STEEP, Values, shares, slopes
from sparsify.train.data import Data
from sparsify.train.objective import check_fit
from sparsify.train.sources import load_data
from sparsify.train.study_progress import StudyBar
from sparsify.train.variants import (
    RULES,
    Variant,
    Variants,
    check_densities,
    check_names,
    check_parameterizations,
    describe,
)

Mode = Literal["density", "width", "isoflop"]
DENSITIES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
WIDTHS = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class CoordCheck:
    """What a coordinate check measured.

    Attributes:
        mode: What varies: `density` at the given widths, `width` at one density, or `isoflop` for both.
        points: For each variant, realised density of the masked layers and width factor.
        slopes: Parameterization to layer to slope of log mean |activation| over log density (log width, for
            mode `width`) at the last step; None where an activation was zero or not finite.
        initial_slopes: The same before the first step.
        spread: Standard deviation of the slopes over the seeds, at the last step.
        judged: Layer to whether its slope says something: behind a batch normalisation all slopes vanish.
        flat: Parameterization to the share of judged layers with |slope| ≤ 0.35.
        steep: Parameterization to the share of judged layers with |slope| > 0.7.
        activations: Parameterization to layer to mean |activation| as [point][seed][step].
        losses: Parameterization to the training loss as [point][seed][step].
        settings: Steps, seeds, learning rate, optimizer, rules, data, batch size and scaling of the check.
        plot: The PNG file, if one was asked for.
    """

    mode: Mode
    points: tuple[dict[str, float], ...]
    slopes: dict[str, dict[str, float | None]]
    initial_slopes: dict[str, dict[str, float | None]]
    spread: dict[str, dict[str, float | None]]
    judged: dict[str, bool]
    flat: dict[str, float | None]
    steep: dict[str, float | None]
    activations: dict[str, dict[str, Values]]
    losses: dict[str, Values]
    settings: dict[str, Any]
    plot: Path | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; NaN stays NaN."""
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {**data, "points": list(self.points), "plot": None if self.plot is None else str(self.plot)}


def coord_check(
    traced: Traced,
    data: str | Data | None = None,
    *,
    parameterizations: Sequence[str] = ("supar", "mup", "sp"),
    mode: Mode = "density",
    densities: Sequence[float] | None = None,
    widths: Sequence[float] = WIDTHS,
    steps: int = 10,
    seeds: int = 3,
    lr: float | None = None,
    optimizer: str = "adamw",
    rules: Sequence[str] = RULES,
    batch_size: int | None = None,
    sequence_length: int = 128,
    density_exponent: float | None = None,
    base: Base | None = None,
    lr_behind_batchnorm: bool = False,
    input_multiplier: float = 1.0,
    output_multiplier: float = 1.0,
    base_std: Mapping[str, float] | None = None,
    plot: str | Path | None = None,
    progress: bool = True,
    **plan_options: Any,
) -> CoordCheck:
    """Trains sparse variants of a model for a few steps and compares the size of their activations.

    Args:
        traced: The dense model. It stays as it is; variants are drawn from scratch.
        data: A data SPEC, or the data; None for random inputs and targets made from the trace.
        parameterizations: Which of `supar`, `mup` and `sp` to compare.
        mode: `density`: all densities at the given widths; `width`: all widths at the one density given;
            `isoflop`: all densities, each at the width that keeps the FLOPs.
        densities: Densities in (0, 1]; by default 1 … 1/16, and 1/4 for mode `width`.
        widths: Width factors for mode `width`.
        steps: Optimizer steps, at a constant learning rate.
        seeds: Runs with other weights, masks and data order.
        lr: Learning rate of the dense base. A large one shows most; by default the largest power of 2
            with which the dense model's loss falls, in these steps, by 98 % of what it does with the best.
            With `base`, the dense model gets that base's rates.
        optimizer: `adamw` or `sgd` (momentum 0.9), without weight decay.
        rules: Rules in force: `init`, `lr`. Leaving one out shows what it is good for.
        batch_size: Examples in a batch; by default 8 sequences (of random data: 1024 tokens), or 64 others.
        sequence_length: Bytes in a window of `text` data.
        density_exponent: As for `transform`: γ of m_ρ^γ in SμPar.
        base: As for `transform`: what scaling is relative to, where it is not the traced model.
        lr_behind_batchnorm: As for `transform`.
        input_multiplier: As for `transform`.
        output_multiplier: As for `transform`.
        base_std: As for `transform`.
        plot: PNG file to write.
        progress: Show a progress bar on stderr.
        **plan_options: Options of the plans: only, keep_dense, scope, heads, multiple, pattern.

    Returns:
        Slopes by layer, and the activations that they come from.

    Raises:
        UserError: An option is out of range, or the data does not fit the model.
        BudgetError: There is nothing to mask, or a width has no plan.
    """
    chosen = check_parameterizations(parameterizations)
    points = _points(mode, densities, widths)
    scaling = ScalingOptions(
        density_exponent=density_exponent,
        base=base,
        lr_behind_batchnorm=lr_behind_batchnorm,
        input_multiplier=input_multiplier,
        output_multiplier=output_multiplier,
    )
    source = _source(traced, data, batch_size, sequence_length)
    settings = Settings(
        steps,
        seeds,
        lr,
        optimizer,  # type: ignore[arg-type]
        check_names(rules, RULES, "rule") if rules else (),
        source.batch_size,
    )
    settings.check()
    variants = Variants(traced, plan_options, scaling, base_std)
    _check_before(variants, chosen, points, data=source)
    target = None if plot is None else _folder_made(Path(plot))
    runs = Runs(variants, source, settings)
    with (
        torch.random.fork_rng(devices=[]),
        StudyBar(len(chosen) * len(points) * seeds, progress) as bar,
    ):
        if lr is None:
            bar.says("finding a learning rate on the dense model")
            runs.find_lr()
        found: dict[str, Measured] = {name: runs.all(name, points, bar) for name in chosen}
    said = {"data": source.name, **describe(scaling, base_std)}
    return _summary(runs, mode, points, found, said, target)


def _points(mode: str, densities: Sequence[float] | None, widths: Sequence[float]) -> tuple[Variant, ...]:
    if mode not in get_args(Mode):
        raise UserError(f"mode '{mode}' is not one of {', '.join(get_args(Mode))}")
    if mode == "width":
        fixed = check_densities(densities if densities is not None else (0.25,))
        if len(fixed) != 1:
            raise UserError(f"mode 'width' compares widths at one density, {len(fixed)} were given")
        found = tuple(Variant(fixed[0], float(width)) for width in sorted(set(widths)))
    else:
        width: Literal["isoflop"] | None = "isoflop" if mode == "isoflop" else None
        given = check_densities(DENSITIES if densities is None else densities)
        found = tuple(Variant(density, width) for density in given)
    if len(found) < 2:
        raise UserError(f"a slope needs at least two {'widths' if mode == 'width' else 'densities'}")
    return found


def _source(traced: Traced, data: str | Data | None, batch_size: int | None, sequence_length: int) -> Source:
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if data is None:
        return RandomBatches(traced, batch_size)
    found = load_data(data, sequence_length=sequence_length) if isinstance(data, str) else data
    return DataBatches(found, batch_size)


def _check_before(
    variants: Variants, chosen: Sequence[Parameterization], points: Sequence[Variant], *, data: Source
) -> None:
    """Finds what would stop the check before anything is run.

    Raises:
        UserError: The base is another architecture, an option is out of range, or the model does not run on
            the data.
        BudgetError: There is nothing to mask, or a width has no plan.
    """
    variants.masked_layers()
    for name in chosen:
        for point in points:
            variants.scaling(point, name)
    if isinstance(data, DataBatches):
        check_fit(variants.model(Variant(1.0), chosen[0], 0), data.data, torch.device("cpu"))


def _folder_made(file: Path) -> Path:
    """The file, in a folder that is there: better no check than one whose plot cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _summary(
    runs: Runs,
    mode: Mode,
    points: Sequence[Variant],
    found: Mapping[str, Measured],
    said: Mapping[str, Any],
    plot: Path | None,
) -> CoordCheck:
    realised = tuple(_realised(runs.variants, point) for point in points)
    x = [point["width" if mode == "width" else "density"] for point in realised]
    behind = runs.variants.behind_batchnorm()
    judged = {name: name not in behind for name in runs.layers}

    def every(measure: Callable[[Values], float | None]) -> dict[str, dict[str, float | None]]:
        return {
            name: {layer: measure(values) for layer, values in layers.items()}
            for name, (layers, _) in found.items()
        }

    last = every(lambda values: slopes(x, values, -1)[0])
    settings = {entry.name: getattr(runs.settings, entry.name) for entry in fields(runs.settings)}
    result = CoordCheck(
        mode=mode,
        points=realised,
        slopes=last,
        initial_slopes=every(lambda values: slopes(x, values, 0)[0]),
        spread=every(lambda values: slopes(x, values, -1)[1]),
        judged=judged,
        flat={name: shares(by, judged, lambda slope: abs(slope) <= FLAT) for name, by in last.items()},
        steep={name: shares(by, judged, lambda slope: abs(slope) > STEEP) for name, by in last.items()},
        activations={name: layers for name, (layers, _) in found.items()},
        losses={name: losses for name, (_, losses) in found.items()},
        settings={**settings, **said},
        plot=plot,
    )
    if plot is not None:
        plot_check(realised, result.activations, plot, mode=mode, slopes=last, settings=result.settings)
    return result


def _realised(variants: Variants, point: Variant) -> dict[str, float]:
    """Density over the layers that any variant masks, and width factor, of a plan."""
    masked = set(variants.masked_layers())
    layers = [layer for layer in variants.plan(point).layers if layer.fqn in masked]
    nnz, size = sum(layer.nnz for layer in layers), sum(math.prod(layer.shape) for layer in layers)
    widest = max(layer.width for layer in layers)
    return {"density": nnz / size, "width": float(widest)}
