"""The inputs that a model is tried, checked and timed on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sparsify.errors import UserError
from sparsify.lowering.candidate import Array
from sparsify.lowering.graph import Graph
from sparsify.lowering.inputs import SIZES, random_inputs
from sparsify.runtime import Session

TUNED_BATCHES = (1, 8)
"""Batch sizes that speed is measured at where neither the file nor the caller says one."""

TUNED_SIZES = (128, 64, 224, 16)
"""Sizes tried in turn for every other symbolic dimension when speed is measured."""

_SILENT = 4  # inputs that do not fit are expected here, and reported if none does

Feeds = Mapping[str, Array]


def reference_run(
    graph: Graph,
    source: Path,
    inputs: Feeds | None,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    symbols: Mapping[str, int] | None = None,
) -> tuple[Feeds, Feeds]:
    """Runs the source on the given inputs, or on random ones of sizes that it accepts.

    Args:
        graph: The indexed source.
        source: The source file.
        inputs: An array for every input.
        sizes: What to try: sizes of the first dimension's symbol and of every other.
        symbols: Sizes of dimensions by symbol, which hold whatever is tried.

    Returns:
        The inputs and the outputs.

    Raises:
        UserError: ONNX Runtime cannot open the file, or not run it on any inputs that were tried.
    """
    session = Session(source, log_severity_level=_SILENT)
    if inputs is not None:
        return inputs, session.run(inputs)
    problem: UserError | None = None
    for feeds in _distinct(
        random_inputs(graph, batch=batch, other=other, symbols=symbols) for batch, other in sizes
    ):
        try:
            return feeds, session.run(feeds)
        except UserError as error:
            problem = problem or error
    raise UserError(
        f"{source}: no random inputs that it runs on were found; pass example ones with inputs=… ({problem})"
    )


def workloads(
    graph: Graph,
    source: Path,
    inputs: Feeds | None,
    *,
    batches: Sequence[int] = (),
    symbols: Mapping[str, int] | None = None,
) -> list[Feeds]:
    """Inputs to measure on, one set for each batch size.

    Args:
        graph: The indexed source.
        source: The source file.
        inputs: The only inputs to measure on, where they are given.
        batches: Batch sizes; `TUNED_BATCHES`, as far as the file takes them, where none are given.
        symbols: Sizes of dimensions by symbol; the first of `TUNED_SIZES` that works where not given.

    Raises:
        UserError: The file has a fixed batch size and another is asked for, or it does not run.
    """
    if inputs is not None:
        return [inputs]
    check_symbols(graph, symbols or {})
    found = []
    for batch in batches or TUNED_BATCHES:
        check_batch(graph, batch, fixed_is_fine=not batches)
        sizes = [(batch, other) for other in TUNED_SIZES]
        try:
            found.append(reference_run(graph, source, None, sizes=sizes, symbols=symbols)[0])
        except UserError:
            if batches:
                raise
    if not found:
        found.append(reference_run(graph, source, None, symbols=symbols)[0])
    return list(_distinct(found))


def check_symbols(graph: Graph, symbols: Mapping[str, int]) -> None:
    """Checks sizes that a caller gives by symbol.

    Raises:
        UserError: A size is below 1, or no input has such a symbol.
    """
    dims = (dim for value in _inputs(graph) for dim in graph.shapes.get(value, ()))
    known = sorted({dim for dim in dims if isinstance(dim, str) and dim.isidentifier()})
    for name, size in symbols.items():
        if name not in known:
            raise UserError(
                f"no input has a dimension {name!r}; its free dimensions are {', '.join(known) or 'none'}"
            )
        if size < 1:
            raise UserError(f"the size of {name!r} must be at least 1, not {size}")


def check_batch(graph: Graph, batch: int, *, fixed_is_fine: bool = False) -> None:
    """Checks a batch size against what the file fixes.

    Raises:
        UserError: It is below 1, or the first input's first dimension is another number.
    """
    if batch < 1:
        raise UserError(f"a batch size must be at least 1, not {batch}")
    for name in _inputs(graph):
        first = next(iter(graph.shapes.get(name, ())), None)
        if isinstance(first, int) and first != batch and not fixed_is_fine:
            raise UserError(
                f"input {name!r} has a fixed first dimension of {first}, so batch {batch} cannot be run; "
                "export the model with a dynamic batch, or leave the batch out"
            )
        return


def _inputs(graph: Graph) -> list[str]:
    return [value.name for value in graph.model.graph.input if value.name not in graph.overridable]


def _distinct(candidates: Iterator[Feeds] | Sequence[Feeds]) -> Iterator[Feeds]:
    seen: list[list[tuple[int, ...]]] = []
    for feeds in candidates:
        shapes = [value.shape for value in feeds.values()]
        if shapes not in seen:
            seen.append(shapes)
            yield feeds
