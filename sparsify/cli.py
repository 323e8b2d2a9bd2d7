"""The command line: a typer skin over `sparsify.commands`; printing lives in `_console` and `_views`."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify import _views as views
from sparsify._console import Format, Output, exit_codes
from sparsify._finetune import finetune
from sparsify._narrow import narrow
from sparsify._options import (
    BranchNonlinearityOption,
    DistributionOption,
    ExplainOption,
    FactoryOption,
    FamilyOption,
    FormatOption,
    HeadsOption,
    InitialDensityOption,
    InputOption,
    MultipleOption,
    NewConnectionsOption,
    PatternOption,
    SeedOption,
    SparseFactorsOption,
    TrustOption,
    WidthOption,
    consent,
)
from sparsify._runtime_commands import bench, bench_layer, lower
from sparsify._scaling_options import (
    BaseOption,
    BaseStdOption,
    InputMultiplierOption,
    LrBehindBatchnormOption,
    OutputMultiplierOption,
)
from sparsify._study_commands import coord_check, sweep

app = typer.Typer(
    name="sparsify",
    help="Compile dense PyTorch models into sparse models of the same FLOPs, train, export and run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    """Sparse models of the same FLOPs: transform, finetune, export, bench."""
    if version:
        from sparsify import __version__

        typer.echo(f"sparsify {__version__}")
        raise typer.Exit


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="Model: .pt2, pickled module, state_dict, safetensors or .onnx.")
    ],
    explain: ExplainOption = None,
    inputs: InputOption = None,
    trust_pickle: TrustOption = False,
    model: FactoryOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Show what is in a model file: layers, densities, FLOPs, width groups, sparse nodes.

    Example: sparsify inspect model.pt
    """
    from sparsify import _explain
    from sparsify._inspect import inspect_file

    out = Output(output_format)
    trust = consent(trust_pickle, out)
    if explain is not None:
        data = _explain.explain(file, explain, trust_pickle=trust, factory=model)
        out.result(data)
        _explain.show(out, data)
        return
    data = inspect_file(file, inputs=inputs or [], trust_pickle=trust, factory=model)
    out.result(data)
    views.inspect(out, data)


@app.command()
def doctor(output_format: FormatOption = Format.text) -> None:
    """Check the installation: library, CPU instruction sets, ONNX Runtime, a self-test of the kernels."""
    from sparsify import commands

    out = Output(output_format)
    data = commands.doctor()
    out.result(data)
    views.doctor(out, data)
    if not data["ok"]:
        raise SystemExit(3)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for models and report.")] = Path(
        "demo"
    ),
    seed: SeedOption = 0,
    output_format: FormatOption = Format.text,
) -> None:
    """Do the main job on scikit-learn's digits and write a report (about 3 minutes on 2 cores)."""
    from sparsify.demo import run_demo

    out = Output(output_format)
    data = run_demo(output, seed=seed, say=out.say)
    out.result(data)
    views.demo(out, data)


@app.command()
def transform(
    model_file: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Dense model: .pt2, pickle, state_dict.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Archive to write; not needed with --plan-only.")
    ] = None,
    family: FamilyOption = "wide",
    sparsity: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.9999, help="1 − density; 0.75 if not given, the pattern's own with N:M."),
    ] = None,
    width: WidthOption = None,
    pattern: PatternOption = "unstructured",
    scope: Annotated[
        str, typer.Option(help="all: every width; inner: off the residual stream only.")
    ] = "all",
    budget: Annotated[str, typer.Option(help="model: whole-model FLOPs; layer: the papers' rule.")] = "model",
    distribution: DistributionOption = None,
    heads: HeadsOption = None,
    sparse_factors: SparseFactorsOption = "both",
    branch_nonlinearity: BranchNonlinearityOption = None,
    multiple: MultipleOption = None,
    init: Annotated[
        str, typer.Option(help="scratch: new weights; preserve: keep the given ones.")
    ] = "scratch",
    new_connections: NewConnectionsOption = 0.05,
    initial_density: InitialDensityOption = None,
    parameterization: Annotated[str, typer.Option(help="supar, mup or sp.")] = "supar",
    density_exponent: Annotated[
        float | None, typer.Option(help="γ of SμPar's density ratio; 1 if not given.")
    ] = None,
    base: BaseOption = None,
    lr_behind_batchnorm: LrBehindBatchnormOption = False,
    input_multiplier: InputMultiplierOption = 1.0,
    output_multiplier: OutputMultiplierOption = 1.0,
    base_std: BaseStdOption = None,
    plan: Annotated[Path | None, typer.Option(help="Plan JSON to apply instead of making one.")] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print the plan and stop; -o writes it as JSON.")
    ] = False,
    inputs: InputOption = None,
    keep_dense: Annotated[
        list[str] | None, typer.Option(help="Layers to leave dense (pattern). Repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="The only layers to rewrite (pattern). Repeatable.")
    ] = None,
    print_after: Annotated[
        str | None,
        typer.Option(metavar="PASS", help="Print the graph after this pass (or `all`) on stderr."),
    ] = None,
    trust_pickle: TrustOption = False,
    model: FactoryOption = None,
    seed: SeedOption = 0,
    output_format: FormatOption = Format.text,
) -> None:
    """Rewrite a dense model into a sparse one of the same FLOPs.

    Example: sparsify transform model.pt -o sparse.pt2 --sparsity 0.75
    """
    from sparsify import commands

    if output is None and not plan_only:
        raise typer.BadParameter(
            "say where the result goes, or ask for the plan with --plan-only", param_hint="-o"
        )
    out = Output(output_format)
    planned = {
        "family": family,
        "sparsity": sparsity,
        "width": width,
        "pattern": pattern,
        "scope": scope,
        "budget": budget,
        "keep_dense": tuple(keep_dense or ()),
        "only": tuple(only or ()),
        "sparse_factors": sparse_factors,
        "multiple": multiple,
    }
    given = {"heads": heads, "distribution": distribution, "branch_nonlinearity": branch_nonlinearity}
    planned |= {name: value for name, value in given.items() if value is not None}
    data = commands.transform(
        model_file,
        output,
        plan_file=plan,
        plan_only=plan_only,
        plan_options=planned,
        init=init,
        parameterization=parameterization,
        density_exponent=density_exponent,
        scaling={
            "base": base,
            "lr_behind_batchnorm": lr_behind_batchnorm,
            "input_multiplier": input_multiplier,
            "output_multiplier": output_multiplier,
            "base_std": base_std,
        },
        new_connections=new_connections,
        initial_density=initial_density,
        inputs=inputs or [],
        trust_pickle=consent(trust_pickle, out),
        factory=model,
        seed=seed,
        print_after=print_after,
        say=out.say,
    )
    out.result(data)
    views.transform(out, data)


app.command()(narrow)
app.command(name="coord-check")(coord_check)
app.command()(sweep)
app.command()(finetune)


@app.command()
def export(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="Archive to export.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")],
    dense: Annotated[bool, typer.Option("--dense", help="Standard operators only, zeros in place.")] = False,
    inputs: InputOption = None,
    trust_pickle: TrustOption = False,
    model: FactoryOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Write ONNX, lowered to sparse operators where they are faster, and check its outputs.

    Example: sparsify export trained.pt2 -o model.onnx
    """
    from sparsify import commands

    out = Output(output_format)
    data = commands.export(
        model_file,
        output,
        dense=dense,
        inputs=inputs or [],
        trust_pickle=consent(trust_pickle, out),
        factory=model,
    )
    out.result(data)
    views.lower(out, data)


app.command()(lower)
app.command()(bench)
app.command(name="bench-layer")(bench_layer)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    """Shows our own warnings as talk; those of libraries about their own code say nothing to a user."""
    if os.environ.get("SPARSIFY_DEBUG") or "sparsify" in Path(filename).parts:
        Output(Format.text).warn(str(message))


def main() -> None:
    """Entry point of the `sparsify` command."""
    warnings.showwarning = _show_warning
    if not os.environ.get("SPARSIFY_DEBUG"):
        logging.disable(logging.ERROR)  # torch logs a traceback beside the exception that we show in a line
    with exit_codes(debug=bool(os.environ.get("SPARSIFY_DEBUG"))):
        app()


if __name__ == "__main__":
    main()
