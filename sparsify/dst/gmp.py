"""Gradual magnitude pruning: starts dense, removes the smallest weights bit by bit.

Source: Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim

from sparsify.dst.base import Algorithm
from sparsify.dst.cells import Cells
from sparsify.dst.planned import planned_counts
from sparsify.dst.schedule import CubicSchedule
from sparsify.dst.slots import optimized
from sparsify.dst.update import largest_active, present_count
from sparsify.errors import UserError
from sparsify.masks import NM, Pattern, masked_parameters, parse_pattern, set_mask, unwrapped, verify_masks

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Target = float | Mapping[str, float]


class GMP(Algorithm):
    """Prunes every layer from its present density to its target as a cubic.

    The sparsity is s_t = s_f + (s_i − s_f)(1 − (t − t0)/(nΔT))³.

    Masks only shrink. Fan-in masks keep as many weights in every row at every update, n:m masks go from m to
    n in every group, blocks go by the sum of their magnitudes.

    Args:
        model: A model made with `transform(..., initial_density=1.0)`, whose plan holds the targets; or a
            plain one together with `target`, which gets masks here.
        optimizer: One of torch's elementwise optimizers.
        total_steps: Length of the run in optimizer steps.
        update_every: ΔT, steps between two updates.
        start_fraction: Share of the run before the first removal.
        stop_fraction: Share of the run at whose end the targets are reached.
        target: Density of every layer, or density by fqn of the weight. For a plain model without masks a
            number means all its linear layers and convolutions. By default what the plan says.
        pattern: What the masks will look like; by default what the model's plan says.
        seed: Accepted so that algorithms can be exchanged; nothing is drawn.

    Attributes:
        targets: Active weights in the end, by fqn.
        initial: Active weights at the start, by fqn.

    Raises:
        UserError: When an option is out of range, the optimizer is unsuitable, there is no target, or the
            model is at its target already.
    """

    changes_masks: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        update_every: int = 100,
        start_fraction: float = 0.1,
        stop_fraction: float = 0.75,
        target: Target | None = None,
        pattern: str | Pattern | None = None,
        seed: int = 0,
    ) -> None:
        if not 0.0 <= start_fraction < stop_fraction <= 1.0:
            raise UserError(
                "start_fraction and stop_fraction must rise within [0, 1], "
                f"got {start_fraction} and {stop_fraction}"
            )
        self.schedule = CubicSchedule(
            update_every, int(start_fraction * total_steps), int(stop_fraction * total_steps)
        )
        bare = unwrapped(model)
        if target is not None:
            _mask_targets(bare, optimizer, target, pattern)
        super().__init__(model, optimizer, pattern=pattern, seed=seed)
        self.initial = self.counts
        try:
            self.targets = self._targets(bare, target)
            if not any(self.optimizer.state.values()):
                self._check_distance()
        except UserError:
            self.remove()
            raise

    def _check_mask(self, fqn: str) -> None:
        """An n:m mask on its way there has more than n active in every group."""
        cells = self.cells[fqn]
        mask = cells.fold_mask(self.entries[fqn].mask)
        counts = mask.sum(1)
        if (
            not isinstance(cells.pattern, NM)
            or int(counts.min()) < cells.pattern.n
            or int(counts.max()) > int(counts.min())
        ):
            super()._check_mask(fqn)

    def _targets(self, model: nn.Module, target: Target | None) -> dict[str, int]:
        if target is None:
            planned = planned_counts(model, self.entries)
            if not planned:
                raise UserError(
                    "GMP needs a target: the model has no plan that says how dense it is to become; give "
                    "target= a density, or densities by parameter"
                )
            return planned
        densities = target if isinstance(target, Mapping) else dict.fromkeys(self.entries, target)
        unknown = [fqn for fqn in densities if fqn not in self.entries]
        if unknown:
            raise UserError(f"the optimizer has no parameter '{unknown[0]}' that could be pruned")
        return {fqn: _count(self.cells[fqn], fqn, density) for fqn, density in densities.items()}

    def _check_distance(self) -> None:
        present = self.counts
        if all(count >= present[fqn] for fqn, count in self.targets.items()):
            raise UserError(
                f"nothing is left to prune: the model is at its target already (density {self.density:.4g}); "
                "transform it with initial_density=1.0, so that gradual pruning starts dense, or train it "
                "with static masks"
            )

    def after_step(self) -> None:
        """Prunes when an update is due."""
        if self.step == 1:
            self._check_distance()
        if self.schedule.due(self.step):
            verify_masks(self.model)
            self.apply(self._pruned(self.schedule.remaining(self.step)))

    def _pruned(self, remaining: float) -> dict[str, Tensor]:
        """New masks by fqn; frozen weights stay as they are."""
        masks: dict[str, Tensor] = {}
        for fqn, target in self.targets.items():
            entry, cells = self.entries[fqn], self.cells[fqn]
            if target >= self.initial[fqn] or not entry.param.requires_grad:
                continue
            mask = cells.fold_mask(entry.mask)
            present, alive = present_count(mask)
            rows = len(mask) if alive is None else int(alive.sum())
            wanted = target + (self.initial[fqn] - target) * remaining
            least = target // cells.unit // len(mask)
            per_cell = min(present, max(least, round(wanted / cells.unit / rows)))
            kept = largest_active(cells.fold(entry.param.detach().abs()), mask, per_cell)
            masks[fqn] = cells.unfold(kept if alive is None else kept & alive[:, None])
        return masks

    def state_dict(self) -> dict[str, Any]:
        """Adds the counts at the start, which a half-pruned model does not show."""
        return {**super().state_dict(), "initial": dict(self.initial), "targets": dict(self.targets)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        super().load_state_dict(state)
        self.initial = {fqn: int(count) for fqn, count in state["initial"].items()}
        self.targets = {fqn: int(count) for fqn, count in state["targets"].items()}


def _count(cells: Cells, fqn: str, density: float) -> int:
    fixed = cells.pattern.density
    if fixed is not None and abs(density - fixed) > 1e-9:
        raise UserError(
            f"{fqn}: a {cells.pattern.name} mask has density {fixed:g}, which target={density:g} is not"
        )
    return cells.pattern.count(cells.shape, density)


def _mask_targets(
    model: nn.Module, optimizer: optim.Optimizer, target: Target, pattern: str | Pattern | None
) -> None:
    """Gives full masks to those weights of a plain model that are to be pruned and have none."""
    given = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    masked = {id(entry.param) for entry in masked_parameters(model).values()}
    updated = optimized(optimizer)
    if not isinstance(target, Mapping) and masked & updated:
        return
    for path, module in model.named_modules():
        for name, param in module._parameters.items():
            fqn = f"{path}.{name}" if path else name
            if param is None or id(param) in masked or id(param) not in updated:
                continue
            chosen = fqn in target if isinstance(target, Mapping) else _prunable(module, name, param, given)
            if chosen:
                masked.add(id(param))
                set_mask(module, name, torch.ones_like(param, dtype=torch.bool))


def _prunable(module: nn.Module, name: str, param: Tensor, pattern: Pattern | None) -> bool:
    if not isinstance(module, _LAYERS) or name != "weight":
        return False
    return pattern is None or pattern.refusal(param.shape, getattr(module, "groups", 1)) is None
