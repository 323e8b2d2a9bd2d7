"""What a product needs of the machine at least, and so what bounds it.

Every resource alone and perfectly used gives a time; the longest is the ceiling of a product, and the sum
over its products that of a network. What is between products (norms, activations, attention's softmax) is not
in it, so a network's share tells the worst that can be said of its products.

- FMA: the multiply-adds of non-zeros (of all entries where a product is dense).
- load ports: loads of whole registers in the panel form of the sparse kernels: for every entry one of its
  input for each group of columns, one broadcast for each of the R weights that share it, ¼ of an offset.
- L2: sums that wait between tiles of inputs, and inputs packed into panels, written and read once.
- L3 or memory, or wherever sets of that size come from: weights once, and inputs and outputs once, which the
  product before has just left in the nearest cache that holds them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cpu.machine import Machine
from benchmarks.cpu.panels import Image, Tuning, of_this_process, tiling
from sparsify.runtime.node_profile import ChainWeights, Product, SparseWeight, Weights, product_of

FEW_ROWS = 6


@dataclass(frozen=True)
class Work:
    """Needs of one product, or of several equal ones.

    Attributes:
        flops: Floating-point operations.
        loads: Loads of whole registers, beside the reading of weights.
        near: Bytes that go through the second cache.
        weights: Bytes of weights.
        moved: Bytes of inputs and outputs.
        count: How many products are like this.
    """

    flops: float
    loads: float
    near: float
    weights: float
    moved: float
    count: int = 1

    def seconds(self, machine: Machine, size: int) -> dict[str, float]:
        """Least seconds by resource, for all of them.

        Args:
            machine: Its rates.
            size: Bytes that are passed over again and again: of a network, all its weights.
        """
        near = 3 * machine.caches["L2"] // 8 * machine.threads
        times = {
            "FMA": self.flops / machine.peak,
            "load ports": self.loads / machine.loads if machine.loads else 0.0,
            "L2": self.near / machine.bandwidth(near),
        }
        for read, among in ((self.weights, size), (self.moved, int(self.moved))):
            level = machine.level(among)
            times[level] = times.get(level, 0.0) + read / machine.bandwidth(among)
        return {name: 1e-9 * self.count * value for name, value in times.items()}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Ceiling:
    """The least time of one or more products.

    Attributes:
        seconds: That time.
        resource: What bounds most of it.
        share: How much of it that is.
    """

    seconds: float
    resource: str
    share: float


def ceiling(works: Iterable[Work], machine: Machine, size: int) -> Ceiling:
    """What bounds products that run one after the other."""
    bounds: Counter[str] = Counter()
    for work in works:
        times = work.seconds(machine, size)
        resource = max(times, key=times.__getitem__)
        bounds[resource] += times[resource]  # type: ignore[assignment]
    total = sum(bounds.values())
    if not total:
        return Ceiling(0.0, "–", 0.0)
    resource = max(bounds, key=bounds.__getitem__)
    return Ceiling(total, resource, bounds[resource] / total)


def from_json(data: Iterable[Mapping[str, Any]]) -> list[Work]:
    """What a list of `Work.to_json` was."""
    return [Work(**entry) for entry in data]


def block_rows(layout: str | None) -> int:
    """Outputs that share a stored input in a layout."""
    return int(layout.removeprefix("blocks-")) if layout and layout.startswith("blocks-") else 1


def sparse_work(
    shape: tuple[int, ...],
    nonzeros: int,
    nbytes: int,
    columns: int,
    layout: str,
    *,
    vector: int,
    moved: float,
    image: Image | None = None,
    tuned: Tuning | None = None,
) -> Work:
    """Needs of a sparse product.

    Args:
        shape: Dense shape of the weight, outputs first.
        nonzeros: Weights stored.
        nbytes: Bytes of the packed weight.
        columns: Rows of activations, or output pixels.
        layout: Packed layout.
        vector: Bytes of a register.
        moved: Bytes of inputs and outputs.
        image: What a convolution reads and writes.
        tuned: What kernels are tuned for; None: as in this process.
    """
    flops = 2.0 * nonzeros * columns
    if len(shape) == 2 and columns <= FEW_ROWS:
        return Work(flops, nbytes / vector, 0.0, nbytes, moved)
    rows, lanes = block_rows(layout), vector // 4
    tiles = tiling(shape, nonzeros, columns, rows, image, tuned or of_this_process())
    loads = nonzeros / rows * (math.ceil(columns / lanes) + tiles.panels * (rows + 0.25))
    waiting = 2 * (tiles.tiles - 1) * shape[0] * columns * 4
    return Work(flops, loads, waiting + 2 * 4 * tiles.packed, nbytes, moved)


def work_of(rows: Iterable[Mapping[str, Any]], weights: Weights, vector: int) -> list[Work]:
    """Needs of the products of a profiled network; equal ones together.

    Args:
        rows: Rows of `Session.profile`.
        weights: Weights of its sparse nodes.
        vector: Bytes of a register.
    """
    found: Counter[Work] = Counter()
    for row in rows:
        product, sparse = product_of(row, weights), weights.get(row["node"])
        if product is None:
            continue
        if isinstance(sparse, ChainWeights):
            found.update(_joined_work(sparse, row, vector))
        else:
            found[_work(product, sparse, vector, _image(row["inputs"][0], row["outputs"][0]))] += 1
    return [Work(**{**asdict(work), "count": count}) for work, count in found.items()]


def _joined_work(weights: ChainWeights, row: Mapping[str, Any], vector: int) -> list[Work]:
    """Needs of the steps of a joined node, of which only its own input and output are moved."""
    moved = 4.0 * (math.prod(row["inputs"][0]) + math.prod(row["outputs"][0]))
    works = []
    for weight, x, y, columns in weights.walk(row["inputs"]):
        image = _image(x, y) if len(weight.shape) == 4 else None
        about = (weight.shape, weight.nonzeros, weight.nbytes, columns, weight.layout)
        works.append(sparse_work(*about, vector=vector, moved=moved, image=image))
        moved = 0.0
    return works


def _image(x: Sequence[int], y: Sequence[int]) -> Image | None:
    """What a convolution of these shapes reads and writes; None for other nodes."""
    return Image(x[0], (x[2], x[3]), (y[2], y[3])) if len(x) == len(y) == 4 else None


def _work(product: Product, sparse: SparseWeight | None, vector: int, image: Image | None) -> Work:
    if sparse is None:
        size = 4.0 * math.prod(product.weight)
        return Work(product.flops, 0.0, 0.0, size, max(0.0, product.nbytes - size))
    moved = product.nbytes - sparse.nbytes
    return sparse_work(
        product.weight,
        sparse.nonzeros,
        sparse.nbytes,
        product.columns,
        sparse.layout,
        vector=vector,
        moved=moved,
        image=image if len(product.weight) == 4 else None,
    )
