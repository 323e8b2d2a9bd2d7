"""Fashion-MNIST in memory, and batches that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.train.sources import FASHION_MNIST, fashion_mnist

_AT_ONCE = 500


@dataclass(frozen=True)
class Images:
    """Standardised images, float32 [N, 1, 28, 28], and their labels, int64 [N]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@lru_cache(maxsize=1)
def images() -> Images:
    """All 60 000 training and 10 000 test images.

    Raises:
        UserError: Debian's package dataset-fashion-mnist is not installed.
    """
    data: Any = fashion_mnist(FASHION_MNIST)
    return Images(data.train.inputs[0], data.train.targets, data.test.inputs[0], data.test.targets)


def batches(batch: int, seed: int, *, flip: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: every epoch a new order, its incomplete last batch left out.

    Args:
        batch: Images in one.
        seed: Decides order and flips; runs of one seed see the same batches, whatever they train.
        flip: Whether every second image, at random, is mirrored.
    """
    data = images()
    generator = torch.Generator().manual_seed(1000 + seed)
    count = data.train.shape[0]
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            picked = order[start : start + batch]
            found = data.train[picked]
            if flip:
                mirrored = torch.rand(batch, generator=generator) < 0.5
                found[mirrored] = found[mirrored].flip(-1)
            yield found, data.train_labels[picked]


def steps_of(epochs: float, batch: int) -> int:
    """Optimizer steps of so many epochs."""
    return max(1, int(epochs * (images().train.shape[0] // batch)))


@torch.no_grad()
def evaluate(model: nn.Module, count: int | None = None) -> dict[str, float | None]:
    """Test loss in nats and accuracy in percent, over all test images or the first `count`."""
    data = images()
    inputs, labels = data.test[:count], data.test_labels[:count]
    model.eval()
    logits = torch.cat([model(part) for part in torch.split(inputs, _AT_ONCE)])
    loss = F.cross_entropy(logits, labels)
    accuracy = 100 * float((logits.argmax(1) == labels).double().mean())
    return {"loss": float(loss) if torch.isfinite(loss) else None, "accuracy": round(accuracy, 3)}
