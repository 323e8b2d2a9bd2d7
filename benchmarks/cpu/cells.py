"""What is measured at a time: the cells that the tables are made of, and which of them a part has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MACHINE, SPARSE, PEER = "machine", "sparsify", "deepsparse"
INT8 = ("int8-dynamic", "int8-static")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Cell:
    """Measurements that one process makes together.

    Attributes:
        part: Part of the tables.
        model: `INxOUT` of a linear layer, or the name of a network.
        sparsities: Shares of zeros; of a layer all are timed in the same blocks.
        batches: Batch sizes.
        threads: Threads within an operator.
        pattern: What the masks look like.
        engine: `sparsify`, `deepsparse`, an int8 model in ONNX Runtime, or `machine` for its ceilings.
        tune: Whether nodes are chosen by measuring instead of by estimate.
    """

    part: str
    model: str
    sparsities: tuple[float, ...] = ()
    batches: tuple[int, ...] = ()
    threads: int = 1
    pattern: str = "unstructured"
    engine: str = SPARSE
    tune: bool = False


@dataclass(frozen=True)
class Sizes:
    """How large everything is: the tables, or a toy that shows that they can be made.

    Attributes:
        layers: Linear layers with their sparsity and patterns.
        layer_batches: Their batch sizes.
        grid: The layer of the grid.
        grid_sparsities: Its sparsities.
        grid_batches: Its batch sizes.
        threads: Thread counts of the grid; the last also of the networks.
        network_batches: Of ResNet-50, and of BERT.
        small_sparsities: Of the small networks.
        small_batches: Of the small networks.
        iso: Networks of equal FLOPs; there is no toy of these.
        bytes_layer: The layer whose bytes are counted.
    """

    layers: tuple[tuple[str, float, tuple[str, ...]], ...]
    layer_batches: tuple[int, ...]
    grid: str
    grid_sparsities: tuple[float, ...]
    grid_batches: tuple[int, ...]
    threads: tuple[int, ...]
    network_batches: tuple[tuple[int, ...], tuple[int, ...]]
    small_sparsities: tuple[float, ...]
    small_batches: tuple[int, ...]
    iso: tuple[str, ...]
    bytes_layer: str


FULL = Sizes(
    layers=(
        ("3072x768", 0.9, ("unstructured", "fan-in", "4x1", "16x1")),
        ("1536x1536", 0.75, ("unstructured", "4x1")),
    ),
    layer_batches=(1, 64, 256),
    grid="3072x768",
    grid_sparsities=(0.8, 0.9, 0.95, 0.99),
    grid_batches=(1, 4, 16, 64, 256, 1024, 2048),
    threads=(1, 2),
    network_batches=((1, 16), (1, 8)),
    small_sparsities=(0.5, 0.7, 0.8, 0.9),
    small_batches=(1, 8),
    iso=("resnet18", "vit", "gpt2"),
    bytes_layer="3072x768",
)

QUICK = Sizes(
    layers=(("128x64", 0.9, ("unstructured", "4x1")),),
    layer_batches=(1, 16),
    grid="128x64",
    grid_sparsities=(0.8, 0.95),
    grid_batches=(1, 16),
    threads=(1,),
    network_batches=((1,), (1,)),
    small_sparsities=(0.9,),
    small_batches=(1,),
    iso=(),
    bytes_layer="128x64",
)

PARTS = ("linear", "grid", "resnet50", "bert", "small", "iso", "bytes")


def ceilings(sizes: Sizes) -> list[Cell]:
    """The machine's own figures, for every number of threads."""
    return [Cell(MACHINE, "ceilings", threads=count, engine=MACHINE) for count in sizes.threads]


def cells(part: str, sizes: Sizes, *, tune: bool, peer: bool) -> list[Cell]:
    """The cells of a part.

    Args:
        part: One of `PARTS`.
        sizes: How large.
        tune: Whether nodes of networks are chosen by measuring.
        peer: Whether the other engine is measured, too.
    """
    threads = sizes.threads[-1]
    if part == "linear":
        return [
            Cell(part, layer, (sparsity,), (batch,), pattern=pattern)
            for layer, sparsity, patterns in sizes.layers
            for pattern in patterns
            for batch in sizes.layer_batches
        ]
    if part == "grid":
        return _grid(sizes, tune, peer)
    if part in ("resnet50", "bert"):
        batches = sizes.network_batches[part == "bert"]
        sparsities = (0.9,) if part == "resnet50" else (0.8, 0.9)
        made = _networks(part, (part,), sparsities, batches, (threads,), tune)
        if peer:
            made += [Cell(part, part, (s,), batches, threads, engine=PEER) for s in sparsities]
        if part == "bert":
            made += [Cell(part, part, (), batches, threads, engine=engine) for engine in INT8]
        return made
    if part == "small":
        names = ("mobilenetv2", "minilm")
        return _networks(part, names, sizes.small_sparsities, sizes.small_batches, sizes.threads, tune)
    if part == "iso":
        return [
            Cell(part, name, (0.75,), (1,), count, pattern, tune=tune)
            for name in sizes.iso
            for pattern in ("unstructured", "4x1")
            for count in sizes.threads
        ]
    patterns = ("unstructured", "2x1", "4x1", "8x1", "16x1")
    layers = [Cell(part, sizes.bytes_layer, (0.9,), sizes.layer_batches, 1, pattern) for pattern in patterns]
    return layers + [
        Cell(part, name, (0.9,), (1,), 1, pattern)
        for name in ("resnet50", "bert")
        for pattern in ("unstructured", "4x1")
    ]


def _grid(sizes: Sizes, tune: bool, peer: bool) -> list[Cell]:
    """Ours: all sparsities in the same blocks; the peer's: all batch sizes in a process."""
    made = [
        Cell("grid", sizes.grid, sizes.grid_sparsities, (batch,), count, tune=tune)
        for count in sizes.threads
        for batch in sizes.grid_batches
    ]
    if peer:
        made += [
            Cell("grid", sizes.grid, (sparsity,), sizes.grid_batches, count, engine=PEER)
            for count in sizes.threads
            for sparsity in sizes.grid_sparsities
        ]
    return made


def _networks(
    part: str,
    names: Sequence[str],
    sparsities: Sequence[float],
    batches: tuple[int, ...],
    threads: Sequence[int],
    tune: bool,
) -> list[Cell]:
    return [
        Cell(part, name, (sparsity,), batches, count, tune=tune)
        for name in names
        for sparsity in sparsities
        for count in threads
    ]
