"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from sparsify._console import Format, Output

FormatOption = Annotated[
    Format, typer.Option("--format", help="Text for people or one JSON object on stdout.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-pickle", help="Load files that run code while loading (pickles).")
]
FactoryOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PKG:FACTORY", help="Callable that builds the model of a state_dict file."
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SPEC",
        help="Example input, e.g. 'x:float32[batch,3,224,224]'; named dimensions stay dynamic. Repeatable.",
    ),
]
ExplainOption = Annotated[
    str | None,
    typer.Option("--explain", metavar="FQN", help="Say where one parameter comes from, and why it is so."),
]
NewConnectionsOption = Annotated[
    float,
    typer.Option(min=0.0, max=0.99, help="With preserve: share of every mask for units that are new."),
]
PatternOption = Annotated[
    str,
    typer.Option(
        help="What masks look like: unstructured; fan-in (as many inputs for every output); N:M (N of M "
        "inputs side by side, e.g. 2:4; fixes the density); RxC (blocks of R outputs × C inputs, e.g. 4x1)."
    ),
]
DistributionOption = Annotated[
    str | None,
    typer.Option(
        help="Densities over layers: uniform; erk (small layers denser); as-dense (gives each layer what it "
        "had, times one factor). uniform if not given, as-dense with preserve."
    ),
]
InitialDensityOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Density that masks start with, where training prunes them to the planned one (finetune "
        "--method gmp); 1 starts dense.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of weights, masks and data order.")]
FamilyOption = Annotated[
    str,
    typer.Option(
        help="wide, parallel, factorized or doped: same FLOPs; auto: one of them layer by layer; "
        "masked: same shapes."
    ),
]
WidthOption = Annotated[
    float | None,
    typer.Option(
        help="Width factor k; the density is solved for it. Branches (parallel), or the factor on the rank "
        "(factorized)."
    ),
]
HeadsOption = Annotated[
    bool | None,
    typer.Option("--heads/--no-heads", help="Whether attention heads may be added; yes if not given."),
]
SparseFactorsOption = Annotated[
    str, typer.Option(help="Which factors of a factorized layer are masked: both or first.")
]
BranchNonlinearityOption = Annotated[
    str | None,
    typer.Option(
        help="In branches, or between two factors: auto (what follows the layer), none, norm, relu, gelu, "
        "silu, tanh, norm+relu, norm+gelu or norm+silu; auto if not given, none where weights are preserved."
    ),
]
MultipleOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Round widths to this many channels; 8, or finer in narrow models, if not given."
    ),
]
ThreadsOption = Annotated[str, typer.Option("--threads", help="Thread counts, comma-separated.")]
BatchesOption = Annotated[str, typer.Option("--batch", help="Batch sizes, comma-separated.")]
SizesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="NAME=N",
        help="Size of a free dimension other than the batch, e.g. sequence=128. Repeatable.",
    ),
]


def named_sizes(texts: list[str]) -> dict[str, int]:
    """Reads `NAME=N` options.

    Raises:
        BadParameter: A text is something else.
    """
    sizes = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not (name and equals and number.isdecimal() and int(number)):
            raise typer.BadParameter(f"{text!r} is not NAME=N, such as sequence=128", param_hint="--size")
        sizes[name] = int(number)
    return sizes


def numbers(text: str, kind: type[int] | type[float], option: str) -> list[Any]:
    """Reads a comma-separated list of positive numbers.

    Raises:
        BadParameter: The text is not such a list.
    """
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or any(not value > 0 for value in values):
        raise typer.BadParameter(
            f"{text!r} is not a comma-separated list of positive numbers", param_hint=option
        )
    return values


def names(text: str) -> tuple[str, ...]:
    """Reads a comma-separated list of names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def amounts(text: str, option: str) -> tuple[float, ...]:
    """Reads a comma-separated list of positive numbers, as `1,1/2,0.25,2^-3`.

    Raises:
        BadParameter: The text is not such a list.
    """
    found = tuple(amount(part, option) for part in names(text))
    if not found:
        raise typer.BadParameter("no number was given", param_hint=option)
    return found


def amount(text: str, option: str) -> float:
    """Reads a positive number: a decimal, a fraction `1/16`, or a power `2^-6`.

    Raises:
        BadParameter: The text is no such number.
    """
    first, sign, second = text.partition("/")
    if not sign:
        first, sign, second = text.partition("^")
    try:
        left, right = float(first), float(second) if sign else 1.0
        value = left**right if sign == "^" else left / right
    except (ValueError, ArithmeticError):
        value = 0.0
    if not isinstance(value, float) or not 0.0 < value < float("inf"):
        raise typer.BadParameter(
            f"{text!r} is not a positive number: write 0.25, 1/4 or 2^-2", param_hint=option
        )
    return value


def consent(trust_pickle: bool, out: Output) -> Any:
    """Returns the answer given by flag, else a question that is asked only at a terminal."""
    if trust_pickle or out.is_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return trust_pickle
    return lambda message: typer.confirm(f"{message}\nLoad it all the same?", default=False, err=True)
