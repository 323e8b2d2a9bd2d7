"""What to grow by: a random draw, dense gradients, or momentum."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.dst.cells import Cells
from sparsify.dst.gradients import DenseGradients
from sparsify.dst.revival import bounded
from sparsify.masks import MaskedParameter


class Growth(ABC):
    """A score of every position, the larger the sooner grown."""

    @abstractmethod
    def score(self, fqn: str, cells: Cells, step: int) -> Tensor | None:
        """Scores of one weight at an update.

        Args:
            fqn: The masked parameter.
            cells: Its pattern's view.
            step: Number of the optimizer step after which the update falls.

        Returns:
            Tensor (cells, units), or None for a weight that had no gradient: it is left alone.
        """

    def advance(self) -> None:  # noqa: B027
        """Called after every optimizer step."""

    def prepare(self, step: int, due: int | None) -> None:  # noqa: B027
        """Called after every step, with the step of the next update (None when there is none)."""

    def ready(self) -> bool:
        """Called before the scores of an update are read: whether all of them are finite."""
        return True

    def stop(self) -> None:  # noqa: B027
        """Frees what was gathered for an update."""

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far for the next update."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Takes up what `state_dict` returned; call `prepare` first."""


class RandomGrowth(Growth):
    """Uniform draws: a pure function of seed, parameter and step, so that nothing needs to be saved.

    Args:
        entries: The masked parameters by fqn.
        seed: Of all draws.
    """

    def __init__(self, entries: Mapping[str, MaskedParameter], seed: int) -> None:
        self._entries = entries
        self._seed = seed

    def score(self, fqn: str, cells: Cells, step: int) -> Tensor | None:
        """See `Growth.score`; drawn on the CPU, so that every device sees the same."""
        param = self._entries[fqn].param
        if param.grad is None:
            return None
        text = f"{self._seed}/{fqn}/{step}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7]))
        return torch.rand(cells.size, generator=generator).to(param.device)


class GradientGrowth(Growth):
    """Magnitude of the dense gradient, summed over the window before an update; silent units are `bounded`.

    Args:
        entries: The masked parameters by fqn.
        window: Optimizer steps to sum over.
    """

    def __init__(self, entries: Mapping[str, MaskedParameter], window: int) -> None:
        self._entries = entries
        self._gradients = DenseGradients(entries, window)

    def score(self, fqn: str, cells: Cells, step: int) -> Tensor | None:
        """See `Growth.score`."""
        total = self._gradients.sum_of(fqn)
        return None if total is None else self._fold(fqn, cells, total.abs())

    def _fold(self, fqn: str, cells: Cells, score: Tensor) -> Tensor:
        return cells.fold(bounded(score, self._entries[fqn].mask))

    def advance(self) -> None:
        """See `Growth.advance`."""
        self._gradients.advance()

    def prepare(self, step: int, due: int | None) -> None:
        """Collects from now on when the step after `step` lies in the window that ends with step `due`."""
        self._gradients.prepare(step, due)

    def ready(self) -> bool:
        """Reduces over all processes, and looks for infinities and NaN."""
        return self._gradients.reduce()

    def stop(self) -> None:
        """See `Growth.stop`."""
        self._gradients.stop()

    def state_dict(self) -> dict[str, Any]:
        """See `Growth.state_dict`."""
        return self._gradients.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Growth.load_state_dict`."""
        self._gradients.load_state_dict(state)


class MomentumGrowth(GradientGrowth):
    """Magnitude of the momentum that an unmasked weight would have.

    The optimizer's own slots are zero outside the mask. So gradients are gathered with the optimizer's decay
    over the window, which holds nearly all of a momentum; for Adam, squared ones too.

    Args:
        entries: The masked parameters by fqn.
        window: Optimizer steps to gather.
        decays: By fqn, the decay of the first moment and, for Adam, that of the second.
    """

    def __init__(
        self,
        entries: Mapping[str, MaskedParameter],
        window: int,
        decays: Mapping[str, tuple[float, float | None]],
    ) -> None:
        self._entries = entries
        self._gradients = DenseGradients(entries, window, decays)

    def score(self, fqn: str, cells: Cells, step: int) -> Tensor | None:
        """See `Growth.score`; for Adam |m̂| / (√v̂ + 1e-8), both corrected for the length of the window."""
        moment = self._gradients.mean_of(fqn)
        if moment is None:
            return None
        square = self._gradients.mean_square_of(fqn)
        score = moment.abs() if square is None else moment.abs() / (square.sqrt() + 1e-8)
        return self._fold(fqn, cells, score)
