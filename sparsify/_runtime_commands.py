"""`sparsify lower`, `bench` and `bench-layer`: commands on ONNX files and kernels, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify import _views as views
from sparsify._console import Format, Output
from sparsify._options import BatchesOption, FormatOption, SizesOption, ThreadsOption, named_sizes, numbers
from sparsify._progress import Progress


def lower(
    source: Annotated[
        Path, typer.Argument(metavar="IN.onnx", help="Any ONNX file with zeros in its weights.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="ONNX file to write; only --what-if needs none.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Decide by measuring on this machine.")] = False,
    layout: Annotated[str | None, typer.Option(help="Force a layout: csr, blocks-R, or dense.")] = None,
    what_if: Annotated[
        float | None,
        typer.Option(
            metavar="SPARSITY", help="Cut so many of a dense model's weights and time what it gains."
        ),
    ] = None,
    pattern: Annotated[
        str, typer.Option(help="With --what-if: unstructured, fan-in, N:M or RxC, e.g. 4x1.")
    ] = "unstructured",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to decide for; one if not given.")
    ] = None,
    batch: BatchesOption = "",
    size: SizesOption = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="With --tune: measure again, and keep nothing on disk.")
    ] = False,
    weight_dtype: Annotated[
        str, typer.Option(help="Store sparse weights as float32, bfloat16 or float16; sums are float32.")
    ] = "float32",
    external_data: Annotated[
        bool,
        typer.Option(
            "--external-data", help="Weights in a file beside it, mapped: less memory when it runs."
        ),
    ] = False,
    target: Annotated[
        str, typer.Option(help="Where it is to run: cpu, or cuda (estimated for an H100, not measured).")
    ] = "cpu",
    chains: Annotated[
        bool | None,
        typer.Option(
            "--chains/--no-chains",
            help="Run convolutions that feed each other image by image; decided if not given.",
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Replace nodes of an ONNX file by sparse operators where they are faster.

    Example: sparsify lower pruned.onnx -o sparse.onnx --tune --batch 1,8 --threads 2

    Example: sparsify lower dense.onnx --what-if 0.9 --pattern 4x1
    """
    from sparsify import commands

    if output is None and what_if is None:
        raise typer.BadParameter("say where the result goes", param_hint="-o/--output")
    if pattern != "unstructured" and what_if is None:
        raise typer.BadParameter("a pattern is imposed by --what-if only", param_hint="--pattern")
    out = Output(output_format)
    options: dict[str, Any] = {"tune": tune, "layout": layout, "threads": threads, "cache": not no_cache}
    options["target"] = target
    if what_if is None:
        options |= {"weight_dtype": weight_dtype, "external_data": external_data}
        options["chains"] = chains
    elif weight_dtype != "float32":
        raise typer.BadParameter("what-if times float32", param_hint="--weight-dtype")
    elif chains is not None:
        raise typer.BadParameter("what-if times every node by itself", param_hint="--chains/--no-chains")
    elif external_data:
        raise typer.BadParameter("what-if writes one file, a trial", param_hint="--external-data")
    options["batches"] = numbers(batch, int, "--batch") if batch else []
    options["sizes"] = named_sizes(size or [])
    with Progress(out.talk) as progress:
        data = commands.lower(
            source, output, what_if=what_if, pattern=pattern, **options, progress=progress.update
        )
    out.result(data)
    views.lower(out, data)


def bench(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Model to time.")],
    baseline: Annotated[Path | None, typer.Option(help="The original dense model, as ONNX.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1",
    threads: ThreadsOption = "1",
    duration: Annotated[float, typer.Option(min=0.05, help="Seconds for each model and setting.")] = 4.0,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before counting.")] = 5,
    size: SizesOption = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also time every node, and say what it achieves.")
    ] = False,
    save_plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="With --profile: draw where the time goes, dense and sparse."),
    ] = None,
    provider: Annotated[
        str, typer.Option(help="cpu, or cuda: on the GPU, inputs and outputs in its memory.")
    ] = "cpu",
    require_speedup: Annotated[
        float | None, typer.Option(help="Exit with 3 when any setting's speedup is below this.")
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Time a model beside its dense baseline in the same process, in alternating blocks.

    Example: sparsify bench model.onnx --baseline dense.onnx --batch 1,64 --threads 1,2

    Example: sparsify bench model.onnx --profile --save-plot profile.png
    """
    from sparsify import commands

    if save_plot is not None and not profile:
        raise typer.BadParameter("there is a plot with --profile only", param_hint="--save-plot")
    out = Output(output_format)
    data = commands.bench(
        model_file,
        baseline=baseline,
        batches=numbers(batch, int, "--batch"),
        threads=numbers(threads, int, "--threads"),
        duration=duration,
        warmup=warmup,
        profile=profile,
        sizes=named_sizes(size or []),
        provider=provider,
        plot=save_plot,
    )
    out.result(data)
    views.bench(out, data)
    commands.require_speedup(data, require_speedup)


def bench_layer(
    linear: Annotated[
        str | None, typer.Option(metavar="INxOUT", help="A linear layer, e.g. 3072x768.")
    ] = None,
    conv: Annotated[
        str | None, typer.Option(metavar="CxKxRxS@HxW", help="A convolution, e.g. 64x64x3x3@56x56.")
    ] = None,
    sparsity: Annotated[str, typer.Option(help="Sparsities, comma-separated.")] = "0.8,0.9",
    pattern: Annotated[
        str, typer.Option(help="What masks look like: unstructured, fan-in, N:M, or RxC (outputs x inputs).")
    ] = "unstructured",
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,64,256",
    threads: Annotated[int, typer.Option(min=1, help="Threads of both sides.")] = 1,
    duration: Annotated[float, typer.Option(min=0.05, help="Seconds for each setting.")] = 2.0,
    output_format: FormatOption = Format.text,
) -> None:
    """Time one sparse layer beside ONNX Runtime's dense one, in alternating blocks.

    Example: sparsify bench-layer --linear 3072x768 --sparsity 0.9 --batch 1,64,256
    """
    from sparsify import commands

    if (linear is None) == (conv is None):
        raise typer.BadParameter("give exactly one of --linear and --conv", param_hint="--linear/--conv")
    out = Output(output_format)
    data = commands.bench_layer(
        linear=linear,
        conv=conv,
        sparsities=numbers(sparsity, float, "--sparsity"),
        pattern=pattern,
        batches=numbers(batch, int, "--batch"),
        threads=threads,
        duration=duration,
    )
    out.result(data)
    views.bench_layer(out, data)
