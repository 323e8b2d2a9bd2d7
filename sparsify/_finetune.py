"""`sparsify finetune`: its options and what it does with files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify import _views as views
from sparsify._console import Format, Output
from sparsify._options import FactoryOption, FormatOption, SeedOption, TrustOption, consent
from sparsify.errors import UserError

DATA = "digits, fashion-mnist[:DIR], npz:FILE, text:FILE_OR_DIR or package.module:function."
METHODS = "dense, static, set, rigl, srigl, sparse-momentum, gmp, wgsef or group-lasso."
Text = str | None


def _count(help_text: str) -> Any:
    return typer.Option(min=1, help=help_text)


def finetune(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="Archive to train.")],
    data_spec: Annotated[str, typer.Option("--data", help=DATA)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Archive to write.")],
    method: Annotated[str, typer.Option(help=METHODS)] = "rigl",
    epochs: Annotated[int | None, _count("Passes over the data.")] = None,
    steps: Annotated[int | None, _count("Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int, _count("Examples a step.")] = 128,
    accumulate: Annotated[int, _count("Parts that a step's batch is computed in, to save memory.")] = 1,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Base learning rate, as tuned on the dense model.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Base weight decay.")] = 0.0,
    momentum: Annotated[float, typer.Option(help="Momentum of sgd.")] = 0.9,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant, after the warm-up.")] = "cosine",
    warmup: Annotated[float, typer.Option(help="Share of the run for the linear warm-up.")] = 0.05,
    clip: Annotated[float | None, typer.Option(help="Largest norm of all gradients together.")] = None,
    loss: Annotated[
        Text,
        typer.Option(
            metavar="NAME|MODULE:FUNCTION",
            help="cross-entropy, language, mse, model (its own) or a function; the data's if not given.",
        ),
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="Share spread over all classes.")] = 0.0,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 (autocast).")] = "fp32",
    distill: Annotated[
        Path | None,
        typer.Option(metavar="TEACHER", help="Model file whose outputs count too: the dense model."),
    ] = None,
    distill_weight: Annotated[float, typer.Option(help="α, the teacher's share of the loss.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Temperature of the distillation.")] = 2.0,
    update_every: Annotated[int | None, _count("Steps between topology updates.")] = None,
    drop_fraction: Annotated[
        float | None, typer.Option(help="Share of active weights that the first update replaces.")
    ] = None,
    stop_fraction: Annotated[
        float | None, typer.Option(help="Share of the run after which the topology stays.")
    ] = None,
    method_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Further option of the method, e.g. gamma=0.3. Repeatable."),
    ] = None,
    evaluate_every: Annotated[int | None, _count("Steps between evaluations and checkpoints.")] = None,
    keep: Annotated[
        str, typer.Option(help="Weights to write: last, or best by the test metric (which flatters it).")
    ] = "last",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
    sequence_length: Annotated[int, typer.Option(min=2, help="Bytes in a window of text data.")] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    trust_pickle: TrustOption = False,
    model: FactoryOption = None,
    seed: SeedOption = 0,
    output_format: FormatOption = Format.text,
) -> None:
    """Train a model with fixed or changing masks; checkpoints, log and plot go to OUT.ckpt/.

    Example: sparsify finetune sparse.pt2 --data digits --method rigl -o trained.pt2
    """
    options = {
        "method": method,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "schedule": schedule,
        "warmup": warmup,
        "clip": clip,
        "loss": loss,
        "label_smoothing": label_smoothing,
        "precision": precision,
        "distill_weight": distill_weight,
        "temperature": temperature,
        "update_every": update_every,
        "drop_fraction": drop_fraction,
        "stop_fraction": stop_fraction,
        "method_options": parse_method_options(method_option or []),
        "evaluate_every": evaluate_every,
        "keep": keep,
        "tensorboard": tensorboard,
        "sequence_length": sequence_length,
        "device": device,
        "resume": resume,
        "seed": seed,
    }
    _import_from_here()
    out = Output(output_format)
    data = finetune_file(
        model_file,
        data_spec,
        output,
        {key: value for key, value in options.items() if value is not None},
        distill=distill,
        trust_pickle=consent(trust_pickle, out),
        factory=model,
    )
    out.result(data)
    views.finetune(out, data)


def finetune_file(
    path: Path,
    data: str,
    output: Path,
    options: Mapping[str, Any],
    *,
    distill: Path | None = None,
    trust_pickle: Any = False,
    factory: str | None = None,
) -> dict[str, Any]:
    """Trains a model file and writes the trained archive; what the command prints as JSON."""
    from sparsify import api
    from sparsify.commands import load_model

    model = load_model(path, trust_pickle=trust_pickle, factory=factory)
    teacher = None
    if distill is not None:
        teacher = load_model(distill, trust_pickle=trust_pickle, factory=factory)
    result = api.finetune(model, data, output=output, distill=teacher, **options)
    return {
        "metrics": result.metrics,
        "density": result.density,
        "flops": result.flops,
        "flops_planned": result.flops_planned,
        "events": list(result.events),
        "output": str(output),
        "checkpoints": str(result.checkpoints) if result.checkpoints else None,
    }


def parse_method_options(texts: Sequence[str]) -> dict[str, Any]:
    """Reads `name=value` texts; a value is JSON where it reads as such (0.3, true, null), else text.

    Raises:
        UserError: A text is not of that form, or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise UserError(f"--method-option {text!r} is not of the form name=value, for example gamma=0.3")
        if name in found:
            raise UserError(f"--method-option {name} is given twice")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _import_from_here() -> None:
    """Lets `package.module:function` name a module of the working folder, as `python -m` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
