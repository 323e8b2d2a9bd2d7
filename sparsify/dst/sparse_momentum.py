"""Sparse momentum: grow where momentum is large, in layers whose momentum is large.

Source: Dettmers and Zettlemoyer, "Sparse Networks from Scratch" (arXiv 1907.04840).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn, optim

from sparsify.dst.amount import Layer, removals, shared_out
from sparsify.dst.planned import flops_per_weight, plan_of
from sparsify.dst.rewiring import Rewiring
from sparsify.dst.score import Growth, MomentumGrowth
from sparsify.dst.slots import group_of
from sparsify.dst.update import fill, keep_largest, present_count
from sparsify.errors import UserError
from sparsify.masks import FanIn, MaskedParameter, Pattern

Redistribution = Literal["weights", "flops", "none"]
_ADAM = (optim.Adam, optim.NAdam, optim.RAdam)
_DRIFT = 0.01


class SparseMomentum(Rewiring):
    """Dynamic sparse training by momentum, which moves weights between layers as well as within them.

    At an update every layer loses a share of its smallest weights. All that was removed is shared out among
    the layers in proportion to the mean |momentum| of their active weights, and grows in each where
    |momentum| is largest. Adam's momentum is m / (√v + 1e-8). Momentum outside the masks, where the
    optimizer's own is zero, is gathered from dense gradients over the `window` steps before an update.

    Args:
        model: The masked model.
        optimizer: SGD with momentum, Adam, AdamW, NAdam or RAdam.
        total_steps: Length of the run in optimizer steps.
        update_every: Steps between two updates.
        drop_fraction: p0, the share of active weights that the first update removes; it falls as a cosine to
            0.005. 0.5 for small models, 0.2 for ImageNet.
        stop_fraction: Updates end after this share of the run.
        redistribute: What stays the same over all layers while they exchange weights: the number of
            `weights`; `flops`, which then never exceed those at the start; or `none`: every layer keeps its
            count, as n:m masks do always.
        window: Steps whose gradients are gathered; by default those that hold 95 % of a momentum, at most
            `update_every`.
        pattern: What the masks look like; by default what the model's plan says.
        seed: Accepted so that algorithms can be exchanged; nothing is drawn.

    Attributes:
        budget: What all active weights together may cost: their number, or their FLOPs.

    Raises:
        UserError: As for RigL; and when the optimizer has no momentum, or FLOPs are asked for and the model
            has no plan that knows them.
    """

    by_gradient: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        update_every: int = 100,
        drop_fraction: float = 0.5,
        stop_fraction: float = 1.0,
        redistribute: Redistribution = "weights",
        window: int | None = None,
        pattern: str | Pattern | None = None,
        seed: int = 0,
    ) -> None:
        if redistribute not in get_args(Redistribution):
            raise UserError(f"redistribute is weights, flops or none, not '{redistribute}'")
        if window is not None and not 1 <= window <= update_every:
            raise UserError(f"window must lie in [1, update_every = {update_every}], got {window}")
        if redistribute == "flops" and plan_of(model) is None:
            raise UserError(
                "the FLOPs of a layer are known for transformed models only: transform the model first, or "
                "redistribute weights"
            )
        check_momentum(optimizer)
        self.redistribute, self.window = redistribute, window
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            drop_fraction=drop_fraction,
            stop_fraction=stop_fraction,
            pattern=pattern,
            seed=seed,
            floor=0.005,
        )
        known = flops_per_weight(model, self.entries) if redistribute == "flops" else {}
        self._costs = {fqn: known.get(fqn, 1.0) for fqn in self.entries}
        self._free = [
            fqn for fqn, cells in self.cells.items() if not cells.fixed and (not known or fqn in known)
        ]
        self.budget = self._cost(self._free)
        self._warned = False

    def _growth(self) -> Growth:
        decays = {fqn: _decays(self.optimizer, entry) for fqn, entry in self.entries.items()}
        slowest = max(first for first, _ in decays.values())
        window = self.window or min(self.schedule.every, math.ceil(math.log(0.05) / math.log(slowest)))
        return MomentumGrowth(self.entries, window, decays)

    def new_masks(self, fraction: float) -> dict[str, Tensor]:
        """See `Rewiring.new_masks`."""
        momenta = {fqn: momentum for fqn in self.entries if (momentum := self._momentum(fqn)) is not None}
        masks: dict[str, Tensor] = {}
        for fqn, (kept, count) in self._amounts(momenta, fraction).items():
            growth = self.growth.score(fqn, self.cells[fqn], self.step)
            if growth is None:
                growth = torch.zeros(self.cells[fqn].size, device=self.entries[fqn].param.device)
            masks[fqn] = self.cells[fqn].unfold(self._moved(fqn, growth, kept, count))
        return masks

    def apply(self, masks: Mapping[str, Tensor]) -> None:
        """See `Algorithm.apply`; warns once where FLOPs have drifted from the plan's by more than 1 %."""
        super().apply(masks)
        plan, flops = plan_of(self.model), self.flops
        if plan is None or flops is None or self._warned or flops <= (1 + _DRIFT) * plan.flops.sparse:
            return
        self._warned = True
        warnings.warn(
            f"sparse momentum moved weights to layers that use them more often: the model now takes "
            f"{flops:,} FLOPs, {flops / plan.flops.sparse - 1:.1%} more than planned; redistribute='flops' "
            "keeps FLOPs instead of weights",
            UserWarning,
            stacklevel=2,
        )

    def _moved(self, fqn: str, growth: Tensor, kept: int, count: int) -> Tensor:
        """A layer's new mask, of `count` weights of which the `kept` largest were active before."""
        magnitude, mask = self.folded(fqn)
        unit = self.cells[fqn].unit
        keep = keep_largest(magnitude, mask, kept // unit)
        _, alive = present_count(mask)
        cells = len(mask) if alive is None else int(alive.sum())
        return fill(keep, magnitude, growth, count // unit // cells, alive)

    def _amounts(self, momenta: Mapping[str, float], fraction: float) -> dict[str, tuple[int, int]]:
        """Weights to keep, and weights in the end, of every layer that has a momentum."""
        if not momenta:
            return {}
        layers = {fqn: self._layer(fqn, momentum) for fqn, momentum in momenta.items()}
        units = [self.cells[fqn].unit for fqn in layers]
        removed = dict(zip(layers, removals(list(layers.values()), fraction, units), strict=True))
        counts = {fqn: layer.active for fqn, layer in layers.items()}
        sharing = [fqn for fqn in self._free if fqn in layers and self.redistribute != "none"]
        if sharing:
            resting = [fqn for fqn in self._free if fqn not in layers]
            budget = self.budget - self._cost(resting)
            shared = shared_out([layers[fqn] for fqn in sharing], [removed[fqn] for fqn in sharing], budget)
            counts |= dict(zip(sharing, shared, strict=True))
        return {fqn: (layer.active - removed[fqn], counts[fqn]) for fqn, layer in layers.items()}

    def _layer(self, fqn: str, momentum: float) -> Layer:
        entry, cells = self.entries[fqn], self.cells[fqn]
        mask = cells.fold_mask(entry.mask)
        rows = int(mask.any(1).sum()) if isinstance(cells.pattern, FanIn) else 1
        numel = entry.mask.numel() // len(mask) * rows if rows > 1 else entry.mask.numel()
        active = int(torch.count_nonzero(entry.mask))
        return Layer(active, numel, cells.unit * rows, self._costs[fqn], momentum)

    def _cost(self, fqns: list[str]) -> float:
        return sum(int(torch.count_nonzero(self.entries[fqn].mask)) * self._costs[fqn] for fqn in fqns)

    def _momentum(self, fqn: str) -> float | None:
        """Mean |momentum| over the active weights, None before the first step and without a gradient."""
        entry = self.entries[fqn]
        slots = self.optimizer.state.get(entry.param, {})
        if entry.param.grad is None:
            return None
        buffer = slots.get("momentum_buffer", slots.get("exp_avg"))
        if buffer is None:
            return None
        values = buffer.detach()[entry.mask].float().abs()
        if "exp_avg_sq" in slots:
            values = values / (slots["exp_avg_sq"].detach()[entry.mask].float().sqrt() + 1e-8)
        mean = float(values.mean()) if values.numel() else 0.0
        return mean if math.isfinite(mean) else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Adds the budget."""
        return {**super().state_dict(), "budget": self.budget}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        super().load_state_dict(state)
        self.budget = float(state["budget"])


def check_momentum(optimizer: optim.Optimizer) -> None:
    """Checks that an optimizer has a momentum to read.

    Raises:
        UserError: When it has none.
    """
    sgd = isinstance(optimizer, optim.SGD) and all(group["momentum"] > 0 for group in optimizer.param_groups)
    adam = isinstance(optimizer, _ADAM) and all(group["betas"][0] > 0 for group in optimizer.param_groups)
    if not (sgd or adam):
        raise UserError(
            f"sparse momentum reads the momentum of the optimizer, and this {type(optimizer).__name__} has "
            "none; use SGD with momentum above 0, or Adam, AdamW, NAdam or RAdam"
        )


def _decays(optimizer: optim.Optimizer, entry: MaskedParameter) -> tuple[float, float | None]:
    group = group_of(optimizer, entry)
    if "betas" in group:
        first, second = cast(tuple[float, float], group["betas"])
        return float(first), float(second)
    return float(cast(float, group["momentum"])), None
