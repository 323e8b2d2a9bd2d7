"""How far one optimizer step goes in each group: the α of the prox.

For SGD it is the learning rate. An optimizer that divides by a root mean square of gradients takes steps in
the metric of that divisor, and so must the prox, or groups that hardly matter are moved as far as those that
do: α = learning rate / mean of the divisor over the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, optim

from sparsify.dst.groups import Groups

_SMALLEST_DIVISOR = 0.01


class GroupRates:
    """Learning rates of groups.

    Args:
        groups: The groups.
        optimizer: Updates all of their members. A group with several learning rates counts with that of most
            of its members.
    """

    def __init__(self, groups: Groups, optimizer: optim.Optimizer) -> None:
        self._groups, self._optimizer = groups, optimizer
        self._group_of = {
            id(param): place
            for place, group in enumerate(optimizer.param_groups)
            for param in group["params"]
        }
        members = torch.zeros(len(optimizer.param_groups), len(groups), dtype=torch.float64)
        members = members.to(groups.device)
        for part in groups.parts:
            part.add_totals(torch.ones_like(part.param.detach()), members[self._group_of[id(part.param)]])
        self._place = members.argmax(0)
        self._members = members.sum(0)
        self.base = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]

    def now(self) -> Tensor:
        """α of every group [m], float64, as of the step just taken."""
        return self._rates([float(group["lr"]) for group in self._optimizer.param_groups])

    def at_base(self) -> Tensor:
        """α of every group [m] at the learning rates that the optimizer was made with."""
        return self._rates(self.base)

    def amplification(self) -> float:
        """How many times a lasting gradient counts, where the prox counts once: 1/(1 − momentum)."""
        momenta = [float(group.get("momentum") or 0.0) for group in self._optimizer.param_groups]
        return 1 / (1 - min(0.99, max(momenta)))

    def _rates(self, rates: list[float]) -> Tensor:
        found = torch.tensor(rates, dtype=torch.float64, device=self._groups.device)[self._place]
        divisors = self._divisors()
        return found if divisors is None else found / divisors

    def _divisors(self) -> Tensor | None:
        """Mean over each group of what the optimizer divides gradients by; None where it does not."""
        totals = torch.zeros_like(self._members)
        for part in self._groups.parts:
            options = self._optimizer.param_groups[self._group_of[id(part.param)]]
            divisor = _divisor(self._optimizer.state.get(part.param, {}), options)
            if divisor is None:
                return None
            part.add_totals(divisor, totals)
        means = totals / self._members
        positive = means[means > 0]
        return means.clamp_min(_SMALLEST_DIVISOR * float(positive.median())) if positive.numel() else None


def _divisor(state: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor | None:
    """√v̂ + ε of Adam and its relatives, of RMSprop and Adagrad."""
    for name in ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum"):
        squares = state.get(name)
        if isinstance(squares, Tensor) and not (name == "square_avg" and "acc_delta" in state):
            correction = 1.0
            if name.endswith("exp_avg_sq"):
                correction = 1 - options["betas"][1] ** float(state["step"])
            divisor: Tensor = (squares.detach().float() / correction).sqrt() + options["eps"]
            return divisor
    return None
