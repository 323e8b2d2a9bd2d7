"""What a coordinate check trains on: a data SPEC, or random examples made from the trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sparsify.graph.traced import Traced
from sparsify.train.calling import output_tensor, predict
from sparsify.train.data import Data
from sparsify.train.objective import loss_of

SEQUENCES, EXAMPLES, TOKENS = 8, 64, 1024
_SHAPE_ONLY = {
    torch.ops.aten.reshape.default,
    torch.ops.aten.to.dtype,
    torch.ops.aten.clone.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.slice.Tensor,
}


class Source(Protocol):
    """Batches of a run, by seed and step."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        ...

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """Runs the model on a step's batch; returns the mean loss."""
        ...


class DataBatches:
    """Batches of a data set in an order of the seed; the same for every variant.

    Args:
        data: The data set; its training examples are used.
        batch_size: Examples in a batch; None for 8 sequences or 64 other examples.
    """

    def __init__(self, data: Data, batch_size: int | None) -> None:
        self.data = data
        usual = SEQUENCES if data.task == "language" else EXAMPLES
        self.batch_size = min(usual if batch_size is None else batch_size, len(data.train))
        self.name = data.name

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """See `Source.loss`."""
        count = len(self.data.train)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        places = (torch.arange(self.batch_size) + step * self.batch_size) % count
        batch = self.data.train.batch(order[places])
        return loss_of(self.data.task, predict(model, batch), batch.targets)


class RandomBatches:
    """Random batches that fit the trace.

    Floating-point inputs are N(0, 1), integers that an embedding reads are drawn from its rows, and all
    others are those of the example (ones, where the example holds only zeros: they are masks). Targets are
    classes in the last dimension of an output of two or three dimensions, else values from N(0, 1). Rows and
    classes are as frequent as words are (Zipf's law): how frequent is all that there is to learn, and the
    first that a model learns from real data.

    Args:
        traced: The dense model.
        batch_size: Examples in a batch, where the first dimension is open; None for 1024 tokens, or for 64
            examples that are not made of tokens.
    """

    name = "random inputs and targets"

    def __init__(self, traced: Traced, batch_size: int | None) -> None:
        leaves, self._structure = pytree.tree_flatten((tuple(traced.args), dict(traced.kwargs)))
        nodes = traced.module.graph.find_nodes(op="placeholder")
        rows = [_rows(traced.module, node) for node in nodes]
        lengths = [
            leaf.numel() // len(leaf)
            for leaf, row in zip(leaves, rows, strict=True)
            if row is not None and isinstance(leaf, Tensor) and leaf.dim()
        ]
        usual = math.ceil(TOKENS / max(lengths)) if lengths else EXAMPLES
        self.batch_size = usual if batch_size is None else batch_size
        self._leaves = [
            (_resized(leaf, node, self.batch_size), row)
            for leaf, node, row in zip(leaves, nodes, rows, strict=True)
        ]

    def inputs(self, seed: int, step: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keyword arguments of a step."""
        generator = _generator(seed, step, 0)
        leaves = [_drawn(leaf, rows, generator) for leaf, rows in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return args, kwargs

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """See `Source.loss`."""
        args, kwargs = self.inputs(seed, step)
        output = output_tensor(model(*args, **kwargs)).float()
        generator = _generator(seed, step, 1)
        if output.dim() in (2, 3) and output.shape[-1] > 1:
            targets = _skewed(output.shape[-1], output.shape[:-1], generator)
            return F.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1))
        return F.mse_loss(output, torch.randn(output.shape, generator=generator))


def _skewed(count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers below `count`, number k with probability ∝ 1/(k + 1)."""
    weights = 1 / torch.arange(1, count + 1, dtype=torch.float64)
    drawn = torch.multinomial(weights, math.prod(shape), replacement=True, generator=generator)
    return drawn.reshape(shape)


def _generator(seed: int, step: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 24) + 2 * step + stream)


def _resized(leaf: Any, node: fx.Node, batch_size: int) -> Any:
    """A leaf with `batch_size` examples, where its first dimension is open."""
    value = node.meta.get("val")
    if not isinstance(leaf, Tensor) or not isinstance(value, Tensor) or leaf.dim() == 0:
        return leaf
    if not isinstance(value.shape[0], torch.SymInt):
        return leaf
    return leaf.detach()[torch.arange(batch_size) % len(leaf)]


def _rows(module: fx.GraphModule, node: fx.Node) -> int | None:
    """Rows of the smallest embedding that reads a placeholder; None where none does."""
    sizes: list[int] = []
    waiting: Sequence[fx.Node] = list(node.users)
    while waiting:
        user, *waiting = waiting
        if user.op == "call_module":
            owner = module.get_submodule(str(user.target))
            if isinstance(owner, nn.Embedding):
                sizes.append(owner.num_embeddings)
        elif user.target == torch.ops.aten.embedding.default:
            table = user.args[0]
            if isinstance(table, fx.Node) and table.op == "get_attr":
                sizes.append(len(module.get_parameter(str(table.target))))
        elif user.target in _SHAPE_ONLY:
            waiting = [*waiting, *user.users]
    return min(sizes, default=None)


def _drawn(leaf: Any, rows: int | None, generator: torch.Generator) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_floating_point():
        return torch.randn(leaf.shape, generator=generator).to(leaf.dtype)
    if rows is not None:
        return _skewed(rows, leaf.shape, generator).to(leaf.dtype)
    return leaf if bool(leaf.any()) else torch.ones_like(leaf)
