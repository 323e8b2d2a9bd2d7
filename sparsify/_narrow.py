"""`sparsify narrow`: its options, its JSON object and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsify._console import Format, Output
from sparsify._options import FactoryOption, FormatOption, InputOption, TrustOption, consent
from sparsify.errors import UserError


def narrow(
    model_file: Annotated[Path, typer.Argument(metavar="MODEL", help="Model to take dead units out of.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Archive to write.")],
    units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP=0,3", help="Take out these units of a width group, not the dead ones. Repeatable."
        ),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Largest difference, as a share of the largest output.")
    ] = None,
    multiple_of: Annotated[
        int,
        typer.Option(
            min=1,
            help="Widths end as multiples of this: 16 suits ONNX Runtime's convolutions on AVX-512, 8 AVX2.",
        ),
    ] = 1,
    inputs: InputOption = None,
    trust_pickle: TrustOption = False,
    model: FactoryOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Take dead neurons, filters and heads out of a model, and check that its outputs stay.

    Example: sparsify narrow pruned.pt2 -o small.pt2

    Example: sparsify narrow pruned.pt2 -o small.pt2 --multiple-of 16
    """
    out = Output(output_format)
    data = narrow_file(
        model_file,
        output,
        units=parse_units(units or []),
        tolerance=tolerance,
        multiple_of=multiple_of,
        inputs=inputs or [],
        trust_pickle=consent(trust_pickle, out),
        factory=model,
    )
    out.result(data)
    _show(out, data)


def narrow_file(
    path: Path,
    output: Path,
    *,
    units: Mapping[str, Sequence[int]] | None,
    tolerance: float | None,
    multiple_of: int = 1,
    inputs: Sequence[str],
    trust_pickle: Any = False,
    factory: str | None = None,
) -> dict[str, Any]:
    """Narrows a model file and writes the archive; what the command prints as JSON."""
    from sparsify import api
    from sparsify.commands import load_model, traced_from
    from sparsify.masks.module import SparseGraphModule

    model = load_model(path, trust_pickle=trust_pickle, factory=factory)
    given: Any = model
    if inputs or not isinstance(model, SparseGraphModule):
        given = traced_from(model, inputs)
    narrowed = api.narrow(given, units=units, tolerance=tolerance, multiple_of=multiple_of)
    api.save(narrowed, output)
    found = narrowed.meta["narrowing"]
    return {
        "groups": [
            {
                "id": group.id,
                "size": group.size,
                "granularity": group.granularity,
                "removed": list(group.removed),
            }
            for group in found.groups
        ],
        "refusals": [asdict(refusal) for refusal in found.refusals],
        "parameters": dict(zip(("before", "after"), found.parameters, strict=True)),
        "flops": dict(zip(("before", "after"), found.flops, strict=True)),
        "max_abs_error": found.max_abs_error,
        "output": str(output),
    }


def parse_units(texts: Sequence[str]) -> dict[str, list[int]] | None:
    """Reads `group=0,3` texts; None for none.

    Raises:
        UserError: A text is not of that form.
    """
    units: dict[str, list[int]] = {}
    for text in texts:
        group, _, numbers = text.rpartition("=")
        try:
            units.setdefault(group, []).extend(int(number) for number in numbers.split(","))
        except ValueError:
            group = ""
        if not group:
            raise UserError(f"--units {text!r} is not of the form 'fc1.weight[0]=0,3'")
    return units or None


def _show(out: Output, data: Mapping[str, Any]) -> None:
    rows = [
        (row["id"], row["size"], row["granularity"], len(row["removed"]), _first(row["removed"]))
        for row in data["groups"]
    ]
    out.table("width groups", ("group", "units", "channels each", "removed", "which"), rows)
    kept = [(row["fqn"], row["reason"]) for row in data["refusals"]]
    if kept:
        out.table("groups that keep their size", ("group", "reason"), kept)
    for name in ("parameters", "flops"):
        before, after = data[name]["before"], data[name]["after"]
        out.line(f"{name}: {before:,} before, {after:,} after")
    out.line(f"largest absolute error: {data['max_abs_error']:.2e}")
    out.line(f"written: {data['output']}")


def _first(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
