"""`sparsify coord-check` and `sparsify sweep`: their options, their JSON objects and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify._console import CheckFailedError, Format, Output
from sparsify._options import (
    FactoryOption,
    FormatOption,
    InitialDensityOption,
    InputOption,
    PatternOption,
    TrustOption,
    amount,
    amounts,
    consent,
    names,
)
from sparsify._scaling_options import (
    BaseOption,
    BaseStdOption,
    InputMultiplierOption,
    LrBehindBatchnormOption,
    OutputMultiplierOption,
    resolved,
)
from sparsify.errors import UserError

_DATA = "digits, fashion-mnist[:DIR], npz:FILE, text:FILE_OR_DIR or package.module:function."
ParameterizationOption = Annotated[
    str, typer.Option("--parameterization", help="Which to compare, comma-separated.")
]
ExponentOption = Annotated[float | None, typer.Option(help="γ of SμPar's density ratio; 1 if not given.")]
LengthOption = Annotated[int, typer.Option(min=2, help="Bytes in a window of text data.")]
KeepDenseOption = Annotated[
    list[str] | None, typer.Option(help="Layers to leave dense (pattern). Repeatable.")
]
OnlyOption = Annotated[list[str] | None, typer.Option(help="The only layers to mask (pattern). Repeatable.")]


def coord_check(
    model_file: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Dense model: .pt2, pickle, state_dict.")
    ],
    parameterization: ParameterizationOption = "supar,mup,sp",
    densities: Annotated[
        str | None,
        typer.Option(help="Densities, as 1,1/2,0.25; by default 1 to 1/16 (1/4 for --mode width)."),
    ] = None,
    widths: Annotated[str, typer.Option(help="Width factors for --mode width.")] = "1,2,4",
    mode: Annotated[
        str, typer.Option(help="density: at the given widths; width: at one density; isoflop: both at once.")
    ] = "density",
    data: Annotated[str | None, typer.Option(help=f"{_DATA} Random inputs and targets if not given.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every variant.")] = 3,
    lr: Annotated[
        str | None,
        typer.Option(help="Base learning rate, as 0.004 or 2^-8; found on the dense model if not given."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    rules: Annotated[
        str, typer.Option(help="Rules in force: init,lr; 'init', 'lr' or 'none' switch others off.")
    ] = "init,lr",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples a step; 8 sequences or 64 others if not given.")
    ] = None,
    sequence_length: LengthOption = 128,
    density_exponent: ExponentOption = None,
    base: BaseOption = None,
    lr_behind_batchnorm: LrBehindBatchnormOption = False,
    input_multiplier: InputMultiplierOption = 1.0,
    output_multiplier: OutputMultiplierOption = 1.0,
    base_std: BaseStdOption = None,
    pattern: PatternOption = "unstructured",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Plot to write.")] = None,
    max_slope: Annotated[
        float | None,
        typer.Option(min=0.0, help="Exit with 3 when a judged layer's |slope| under supar is above this."),
    ] = None,
    keep_dense: KeepDenseOption = None,
    only: OnlyOption = None,
    inputs: InputOption = None,
    trust_pickle: TrustOption = False,
    model: FactoryOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Check that activations keep their size over densities or widths while the model starts to train.

    Example: sparsify coord-check model.pt --data digits --plot coordinates.png
    """
    from sparsify import studies

    out = Output(output_format)
    lists: dict[str, Any] = {
        "parameterizations": names(parameterization),
        "densities": None if densities is None else amounts(densities, "--densities"),
        "widths": amounts(widths, "--widths"),
        "rules": () if rules == "none" else names(rules),
        "lr": None if lr is None else amount(lr, "--lr"),
    }
    scaling: dict[str, Any] = {
        "density_exponent": density_exponent,
        "base": base,
        "lr_behind_batchnorm": lr_behind_batchnorm,
        "input_multiplier": input_multiplier,
        "output_multiplier": output_multiplier,
        "base_std": base_std,
    }
    traced, scaling = _prepared(model_file, scaling, inputs or [], consent(trust_pickle, out), model)
    if data is None:
        out.say("no --data: the check trains on random inputs and targets made from the model's inputs")
    found = studies.coord_check(
        traced,
        data=data,
        **lists,
        mode=mode,
        steps=steps,
        seeds=seeds,
        optimizer=optimizer,
        batch_size=batch_size,
        sequence_length=sequence_length,
        **scaling,
        plot=plot,
        **_planned(pattern, keep_dense, only),
    )
    result = found.to_dict()
    out.result(result)
    _show_check(out, result)
    _require_flat(result, max_slope)


def sweep(
    model_file: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Dense model: .pt2, pickle, state_dict.")
    ],
    data: Annotated[str, typer.Option(help=_DATA)],
    lr: Annotated[str, typer.Option(help="Base learning rates, as 2^-10,2^-9,0.004.")],
    densities: Annotated[str, typer.Option(help="Densities, as 1,1/4,1/16.")] = "1,1/4,1/16",
    parameterization: ParameterizationOption = "supar,mup,sp",
    widths: Annotated[
        str | None, typer.Option(help="Width factors, or isoflop for the one that keeps the FLOPs.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the results; a sweep that it holds goes on.")
    ] = Path("sweep"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every cell.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of every run.")] = 150,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 16,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    method: Annotated[
        str, typer.Option(help="How masked models train: static, rigl or another --method of finetune.")
    ] = "static",
    pattern: PatternOption = "unstructured",
    initial_density: InitialDensityOption = None,
    weight_decay: Annotated[float, typer.Option(help="Base weight decay.")] = 0.0,
    warmup: Annotated[float, typer.Option(help="Share of the run for the warm-up; a cosine follows.")] = 0.1,
    clip: Annotated[float | None, typer.Option(help="Largest norm of all gradients together.")] = None,
    test_examples: Annotated[
        int, typer.Option(min=0, help="Test examples for the final loss, evenly spread; 0 for all.")
    ] = 512,
    sequence_length: LengthOption = 128,
    density_exponent: ExponentOption = None,
    base: BaseOption = None,
    lr_behind_batchnorm: LrBehindBatchnormOption = False,
    input_multiplier: InputMultiplierOption = 1.0,
    output_multiplier: OutputMultiplierOption = 1.0,
    base_std: BaseStdOption = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, of one thread each; 1 runs the cells in this one.")
    ] = 1,
    keep_dense: KeepDenseOption = None,
    only: OnlyOption = None,
    inputs: InputOption = None,
    trust_pickle: TrustOption = False,
    model: FactoryOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Find the best learning rate at every density and parameterization; goes on after it was stopped.

    Example: sparsify sweep model.pt --data digits --lr 2^-10,2^-9,2^-8,2^-7 --densities 1,1/4,1/16
    """
    from sparsify import studies

    out = Output(output_format)
    grid: dict[str, Any] = {
        "lrs": amounts(lr, "--lr"),
        "densities": amounts(densities, "--densities"),
        "parameterizations": names(parameterization),
        "widths": widths if widths in (None, "isoflop") else amounts(str(widths), "--widths"),
    }
    scaling: dict[str, Any] = {
        "density_exponent": density_exponent,
        "base": base,
        "lr_behind_batchnorm": lr_behind_batchnorm,
        "input_multiplier": input_multiplier,
        "output_multiplier": output_multiplier,
        "base_std": base_std,
    }
    traced, scaling = _prepared(model_file, scaling, inputs or [], consent(trust_pickle, out), model)
    found = studies.sweep(
        traced,
        data,
        **grid,
        seeds=seeds,
        output=output,
        workers=workers,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        method=method,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        test_examples=test_examples or None,
        sequence_length=sequence_length,
        **scaling,
        plan_options=_planned(pattern, keep_dense, only),
        initial_density=initial_density,
    )
    result = found.to_dict()
    out.result(result)
    _show_sweep(out, result)


def _prepared(
    path: Path, scaling: Mapping[str, Any], inputs: Sequence[str], trust_pickle: Any, factory: str | None
) -> tuple[Any, dict[str, Any]]:
    """The trace of a model file, and the options of its scaling as values."""
    from sparsify import api
    from sparsify.commands import load_model, traced_from

    model = load_model(path, trust_pickle=trust_pickle, factory=factory)
    api.refuse_rewritten(model)
    traced = traced_from(model, inputs)
    options = {"inputs": inputs, "trust_pickle": trust_pickle, "factory": factory}
    return traced, resolved(scaling, traced, **options)


def _planned(pattern: str, keep_dense: Sequence[str] | None, only: Sequence[str] | None) -> dict[str, Any]:
    """Options of the plans, without those that say what holds anyway."""
    found = {"keep_dense": tuple(keep_dense or ()), "only": tuple(only or ())}
    given = {name: value for name, value in found.items() if value}
    return given if pattern == "unstructured" else {**given, "pattern": pattern}


def _require_flat(data: Mapping[str, Any], largest: float | None) -> None:
    """Checks the slopes under SμPar.

    Raises:
        UserError: SμPar was not checked.
        CheckFailedError: A judged layer's slope is too steep, or was not finite.
    """
    if largest is None:
        return
    if "supar" not in data["slopes"]:
        raise UserError("--max-slope judges supar; name it in --parameterization")
    found = {name: slope for name, slope in data["slopes"]["supar"].items() if data["judged"][name]}
    failed = [name for name, slope in found.items() if slope is None or abs(slope) > largest]
    if failed:
        slope = found[failed[0]]
        said = "not finite" if slope is None else f"{slope:.2f}"
        raise CheckFailedError(
            f"{len(failed)} of {len(found)} layers have a |slope| above {largest:g} under supar, "
            f"first {failed[0]}: {said}"
        )


def _show_check(out: Output, data: Mapping[str, Any]) -> None:
    chosen = list(data["slopes"])
    rows = [
        (
            layer if judged else f"{layer} (behind BatchNorm, not judged)",
            *(_signed(data[key][name][layer]) for name in chosen for key in ("initial_slopes", "slopes")),
        )
        for layer, judged in data["judged"].items()
    ]
    last = f"step {data['settings']['steps']}"
    columns = [f"{name} {when}" for name in chosen for when in ("step 0", last)]
    over = "width" if data["mode"] == "width" else "density"
    out.table(f"slope of log mean |activation| over log {over}", ("layer", *columns), rows)
    for name in chosen:
        if data["flat"][name] is not None:
            out.line(
                f"{name}: |slope| ≤ 0.35 in {data['flat'][name]:.0%} of the judged layers, "
                f"> 0.7 in {data['steep'][name]:.0%}"
            )
    settings = data["settings"]
    out.line(
        f"{settings['optimizer']}, lr {settings['lr']:.4g}, {settings['seeds']} seeds, {settings['data']}"
    )
    if data["plot"]:
        out.line(f"written: {data['plot']}")


def _signed(slope: float | None) -> str | None:
    return None if slope is None else f"{slope:+.2f}"


def _show_sweep(out: Output, data: Mapping[str, Any]) -> None:
    edges = {None: "", "low": "lowest of the grid", "high": "highest of the grid"}
    rows = [
        (row["parameterization"], row["width"], row["density"], row["lr"], row["loss"], _note(row, edges))
        for row in data["best"]
    ]
    out.table("best learning rates", ("parameterization", "width", "density", "lr", "loss", "note"), rows)
    for name, factors in data["shift"].items():
        moved = "unknown" if factors is None else f"{factors:g} factors of 2"
        out.line(f"{name}: the best learning rate moves by {moved}")
    for path in data["files"].values():
        out.line(f"written: {path}")


def _note(row: Mapping[str, Any], edges: Mapping[str | None, str]) -> str:
    diverged = sum(row["diverged"])
    notes = (edges[row["edge"]], f"{diverged} runs diverged" if diverged else "")
    return ", ".join(note for note in notes if note)
