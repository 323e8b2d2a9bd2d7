"""What penalties on groups share: a prox after every step, a controlled λ, a hard finish, then masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from sparsify.dst.base import Algorithm
from sparsify.dst.group_choice import Example, find_groups
from sparsify.dst.group_options import check_options, check_pattern, quotas, wanted
from sparsify.dst.group_rates import GroupRates
from sparsify.dst.group_strength import StrengthController
from sparsify.dst.groups import Groups
from sparsify.dst.slots import optimized
from sparsify.errors import UserError
from sparsify.masks import set_mask, topk_mask

Phase = Literal["regularise", "masked"]

_FIRST = 0.5
_MOST = 2.0
_MEMORY = 20.0


class GroupPenalty(Algorithm):
    """Training that ends with k groups of parameters; the others are zero, and stay so.

    Three phases. *Regularise*: after every optimizer step, θ ← prox_{αλR}(θ) with α the learning rate of the
    group, and λ is raised until at most (1 + tolerance)·k groups are left, or `finish_at` of the run is over.
    *Hard finish*: of what is left, the k groups of largest √d_j·‖w_j‖ stay, at least one in each width.
    *Masked*: the rest of the run trains those under masks, without the penalty.

    Attributes:
        groups: The groups.
        k: Wanted groups.
        phase: `regularise` or `masked`.
        strength: λ.
        groups_alive: Groups that are not zero.
        events: What happened: the hard finish, with `step`, `strength`, `groups_alive` before and `kept`.

    Args:
        model: Dense, or masked with masks that leave the choice of groups open.
        optimizer: One of torch's elementwise optimizers, with all parameters of the groups.
        total_steps: Length of the run in optimizer steps.
        groups: A kind of groups (`find_groups`), or groups.
        keep: Share of the groups that stays, in (0, 1]; `k` as a share.
        k: Groups that stay. One of the two.
        scope: `model`: the k best of all; `layer`: the same share of every width.
        floor: Share of its part at even shares that every width keeps under the scope `model`; one group at
            least. They are the best by √d_j·‖w_j‖, and exempt from the penalty if it would leave fewer.
        strength: λ at the start; without it a tenth of what would be felt.
        weights: `sqrt`: d_j = √(entries of group j); `one`.
        tolerance: Groups above k, as a share, at which the finish may come.
        finish_at: Share of the run after which it comes in any case.
        update_every: Most steps between two adjustments of λ; there are at least a hundred.
        example: Inputs of a call, to find units by where the model carries none.
        only: Layers that take part, by fqn with wildcards.
        keep_dense: Layers that do not.
        watch: Called with `before` and `after` around the hard finish, to measure what it costs.
        seed: Accepted so that algorithms can be exchanged; nothing is drawn.

    Raises:
        UserError: An option is out of range, there are no groups, groups overlap or are not all trained, or
            the masks have a pattern that whole groups would break.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        groups: str | Groups = "units",
        keep: float | None = None,
        k: int | None = None,
        scope: Literal["model", "layer"] = "model",
        floor: float = 0.25,
        strength: float | None = None,
        weights: Literal["sqrt", "one"] = "sqrt",
        tolerance: float = 0.05,
        finish_at: float = 0.6,
        update_every: int = 100,
        example: Example = None,
        only: Sequence[str] = (),
        keep_dense: Sequence[str] = (),
        watch: Callable[[str, GroupPenalty], object] | None = None,
        seed: int = 0,
    ) -> None:
        check_options(total_steps, scope, floor, strength, weights, tolerance, finish_at, update_every)
        if isinstance(groups, str):
            groups = find_groups(model, groups, example=example, only=only, keep_dense=keep_dense)
        groups.check_trained(optimized(optimizer))
        check_pattern(model, groups)
        self.groups, self.scope, self.watch = groups, scope, watch
        self.k = wanted(groups, keep, k)
        self.quotas = quotas(groups, self.k, 1.0 if scope == "layer" else floor)
        self.k = self.k if scope == "model" else sum(self.quotas)
        self._mask_members()
        super().__init__(model, optimizer, seed=seed)
        self._rates = GroupRates(groups, optimizer)
        self._d = groups.sizes.clamp_min(1).sqrt() if weights == "sqrt" else torch.ones_like(groups.sizes)
        self.tolerance = tolerance
        self.finish_step = max(1, round(finish_at * total_steps))
        self.phase: Phase = "regularise"
        self.events: list[dict[str, Any]] = []
        self.groups_alive = int(torch.count_nonzero(groups.norms()))
        self.strength = 0.0 if strength is None else float(strength)
        self._falling = 0.0
        self._controller = StrengthController(
            groups=len(groups),
            wanted=self.k,
            steps=max(1, round(0.95 * self.finish_step)),
            every=max(1, min(update_every, self.finish_step // 100)),
        )

    @abstractmethod
    def factors(self, norms: Tensor, strength: Tensor, weights: Tensor, k: int) -> Tensor:
        """What the prox multiplies each group by.

        Args:
            norms: Of the groups [m].
            strength: αλ of each [m].
            weights: d_j [m].
            k: Wanted among them.
        """

    @abstractmethod
    def felt(self, norms: Tensor, rates: Tensor, weights: Tensor) -> float:
        """The λ at which one step shrinks a typical group by its own size.

        Args:
            norms: Of the groups [m], of which some are not zero.
            rates: Learning rate of each [m].
            weights: d_j [m].
        """

    def after_step(self) -> None:
        """Applies the prox, adjusts λ, and finishes when it is time."""
        if self.phase == "masked":
            return
        norms = self.groups.norms()
        self._check_finite(norms)
        if self.strength == 0.0:
            self.strength = _FIRST * self._felt(norms) / self.finish_step
        factors = self._all_factors(norms)
        alive = int(torch.count_nonzero(norms * factors))
        if alive < self.k:
            self.finish()
            return
        self.groups.scale(factors)
        self._adjust(norms * factors, alive)
        if alive <= max(self.k, (1 + self.tolerance) * self.k) or self.step >= self.finish_step:
            self.finish()

    def finish(self) -> None:
        """Keeps the best k groups, masks the others, and drops the penalty: the hard finish."""
        if self.phase == "masked":
            return
        if self.watch is not None:
            self.watch("before", self)
        norms = self.groups.norms()
        before = int(torch.count_nonzero(norms))
        kept = self._best(self._d.sqrt() * norms)
        stays = self.groups.masks(kept)
        self.apply(
            {
                fqn: entry.mask & stays[id(entry.param)]
                for fqn, entry in self.entries.items()
                if id(entry.param) in stays
            }
        )
        self.phase, self.groups_alive = "masked", int(kept.sum())
        self.events.append(
            {
                "event": "hard finish",
                "step": self.step,
                "strength": self.strength,
                "groups_alive": before,
                "kept": self.groups_alive,
            }
        )
        if self.watch is not None:
            self.watch("after", self)

    def _all_factors(self, norms: Tensor) -> Tensor:
        strength = self.strength * self._rates.now()
        if self.scope == "model":
            return self._with_floor(self.factors(norms, strength, self._d, self.k), norms)
        found = torch.empty_like(norms)
        for one, quota in zip(self.groups.sets, self.quotas, strict=True):
            where = slice(one.first, one.first + one.count)
            found[where] = self.factors(norms[where], strength[where], self._d[where], quota)
        return found

    def _with_floor(self, factors: Tensor, norms: Tensor) -> Tensor:
        """Spares the best groups of a width that would lose too many: nothing would pass through it."""
        alive = norms * factors > 0
        for one, quota in zip(self.groups.sets, self.quotas, strict=True):
            where = slice(one.first, one.first + one.count)
            if int(torch.count_nonzero(alive[where])) < quota:
                spared = topk_mask(self._d[where].sqrt() * norms[where], quota)
                factors[where] = torch.where(spared, 1.0, factors[where])
        return factors

    def _best(self, scores: Tensor) -> Tensor:
        """The groups that stay: the quota of every width, and the best of the rest up to k."""
        kept = torch.zeros_like(scores, dtype=torch.bool)
        for one, quota in zip(self.groups.sets, self.quotas, strict=True):
            where = slice(one.first, one.first + one.count)
            kept[where] = topk_mask(scores[where], quota)
        kept |= topk_mask(scores.masked_fill(kept, -torch.inf), self.k - int(kept.sum()))
        return kept & (scores > 0)

    def _mask_members(self) -> None:
        """Gives every member a mask now, so that a model looks the same before and after the finish."""
        for part in self.groups.parts:
            if part.owner._buffers.get(f"{part.name}_mask") is None:
                set_mask(part.owner, part.name, torch.ones_like(part.param, dtype=torch.bool))

    def _felt(self, norms: Tensor) -> float:
        """The λ at which one step, at the base learning rate, shrinks a typical group by its own size."""
        alive, rates = norms > 0, self._rates.at_base()
        if not bool(alive.any()) or not bool((rates > 0).all()):
            raise UserError(
                "the strength of the penalty has no scale: all groups are zero, or a learning rate is; set "
                "rates and weights before the algorithm is made"
            )
        return self.felt(norms[alive], rates[alive], self._d[alive])

    def _adjust(self, norms: Tensor, alive: int) -> None:
        """Leads λ, but not so high that all groups shrink whatever their gradients: nothing would be left."""
        memory = min(1.0, _MEMORY / self.finish_step)
        self._falling += memory * (self.groups_alive - alive - self._falling)
        self.groups_alive = alive
        if self._controller.due(self.step):
            adjusted = self._controller.adjusted(self.strength, alive, self._falling, self.step)
            most = _MOST * self._rates.amplification() * self._felt(norms) / self.finish_step
            self.strength = min(adjusted, max(self.strength, most))

    def _check_finite(self, norms: Tensor) -> None:
        broken = torch.nonzero(~torch.isfinite(norms)).flatten()
        if broken.numel():
            raise UserError(
                f"step {self.step}: {self.groups.describe(int(broken[0]))} and {broken.numel() - 1} more "
                "groups hold weights that are not finite; lower the learning rate, or clip gradients"
            )

    def state_dict(self) -> dict[str, Any]:
        """Adds λ, the phase and what happened."""
        return {
            **super().state_dict(),
            "phase": self.phase,
            "strength": self.strength,
            "groups": len(self.groups),
            "k": self.k,
            "groups_alive": self.groups_alive,
            "falling": self._falling,
            "events": [dict(event) for event in self.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Algorithm.load_state_dict`; the number of groups, too, must be that of the state."""
        for name, own in (("groups", len(self.groups)), ("k", self.k)):
            if state.get(name, own) != own:
                raise UserError(
                    f"this state was written with {name} = {state[name]}, here it is {own}; resume with the "
                    "options that the run was started with"
                )
        super().load_state_dict(state)
        self.phase, self.strength = state["phase"], state["strength"]
        self.groups_alive, self._falling = state["groups_alive"], state["falling"]
        self.events = [dict(event) for event in state["events"]]
