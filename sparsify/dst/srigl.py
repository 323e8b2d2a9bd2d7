"""SRigL: RigL with constant fan-in that gives up neurons, and takes them back.

Source: Lasby et al., "Dynamic Sparse Training with Structured Sparsity" (ICLR 2024, arXiv 2305.02299).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn, optim

from sparsify.dst.planned import planned_counts, readouts
from sparsify.dst.rigl import RigL
from sparsify.dst.update import fill, keep_largest, present_count
from sparsify.errors import UserError
from sparsify.masks import FanIn, Pattern, topk_mask, unwrapped

CONVOLUTION_GAMMA = 0.3
TRANSFORMER_GAMMA = 0.95
_ATTENTIVE = ("LayerNorm", "RMSNorm", "Attention", "scaled_dot_product_attention")


class SRigL(RigL):
    """Dynamic sparse training with constant fan-in: every living neuron reads the same number of inputs.

    A neuron with fewer salient weights than a share γ of the mean is ablated: its row of the mask becomes
    empty and its weights go to the others of the layer. That is decided afresh at every update, so that
    neurons come back. `narrow` takes out those that are ablated in the end.

    Args:
        model: The masked model; its masks are of the pattern fan-in.
        optimizer: One of torch's elementwise optimizers.
        total_steps: Length of the run in optimizer steps.
        update_every: ΔT, steps between two updates; scale it with 128 / batch size.
        drop_fraction: α, the share of active weights that the first update replaces; it falls as a cosine.
        stop_fraction: Updates end after this share of the run.
        window: Optimizer steps whose dense gradients decide an update, 1 to `update_every`.
        gamma: γ, for all layers, or by parameter: fnmatch patterns of fqns, first match first, and the kinds
            `conv` and `linear` for the rest. By default 0.3, and 0.95 for linear layers of models with
            attention or layer normalization.
        ablation: False keeps all neurons: RigL with constant fan-in. The output layer keeps them always.
        pattern: Nothing but fan-in.
        seed: Accepted so that algorithms can be exchanged; SRigL draws nothing.

    Attributes:
        budgets: Weights of every layer that its living neurons share, by fqn.

    Raises:
        UserError: As for RigL; and when masks are not of constant fan-in, or `gamma` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        update_every: int = 100,
        drop_fraction: float = 0.3,
        stop_fraction: float = 0.75,
        window: int = 1,
        gamma: float | Mapping[str, float] | None = None,
        ablation: bool = True,
        pattern: str | Pattern | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            drop_fraction=drop_fraction,
            stop_fraction=stop_fraction,
            window=window,
            pattern=pattern,
            seed=seed,
        )
        self.ablation = ablation
        bare = unwrapped(model)
        try:
            self.gammas = {fqn: _gamma(fqn, len(self.cells[fqn].shape), gamma, bare) for fqn in self.entries}
        except UserError:
            self.remove()
            raise
        self.outputs = readouts(bare, self.entries)
        self.budgets = {**self.counts, **planned_counts(bare, self.entries)}

    def _check_masks(self) -> None:
        for fqn, cells in self.cells.items():
            if not isinstance(cells.pattern, FanIn):
                raise UserError(
                    "SRigL trains masks of constant fan-in, since it ablates rows that have too few salient "
                    f"weights; {fqn} has the pattern {cells.pattern.name}: transform the model with "
                    "pattern='fan-in', or use RigL"
                )
        super()._check_masks()

    @property
    def ablated(self) -> dict[str, int]:
        """Neurons without a weight, by fqn."""
        return {
            fqn: int((~self.cells[fqn].fold_mask(entry.mask).any(1)).sum())
            for fqn, entry in self.entries.items()
        }

    def new_mask(self, fqn: str, growth: Tensor, fraction: float) -> Tensor:
        """See `Rewiring.new_mask`."""
        magnitude, mask = self.folded(fqn)
        active = int(torch.count_nonzero(mask))
        dropped = int(active * fraction)
        kept = keep_largest(magnitude, mask, active - dropped)
        if self.ablation and fqn not in self.outputs:
            budget = self.budgets[fqn]
            alive = living(kept | topk_mask(growth, dropped), budget, self.gammas[fqn])
            return fill(kept, magnitude, growth, fan_in(alive, mask.shape[1], budget), alive)
        per_row, rows = present_count(mask)
        return fill(kept, magnitude, growth, per_row, rows)

    def state_dict(self) -> dict[str, Any]:
        """Adds the budgets, which masks with ablated neurons need not show."""
        return {**super().state_dict(), "budgets": dict(self.budgets)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        super().load_state_dict(state)
        self.budgets = {fqn: int(budget) for fqn, budget in state["budgets"].items()}


def living(salient: Tensor, budget: int, gamma: float) -> Tensor:
    """The neurons of a layer that keep their weights.

    Those with at least τ = max(1, int(γ · (budget // n))) salient weights; but so many, the most salient
    first, that none must read more inputs than there are.

    Args:
        salient: Bool (neurons, inputs): the largest weights and the largest gradients of the layer.
        budget: Active weights of the layer.
        gamma: γ.

    Returns:
        Bool (neurons,).
    """
    neurons, inputs = salient.shape
    counts = salient.sum(1, dtype=torch.int32)
    alive = counts >= max(1, int(gamma * (budget // neurons)))
    least = max(1, budget // inputs)
    return alive if int(alive.sum()) >= least else topk_mask(counts, least)


def fan_in(alive: Tensor, inputs: int, budget: int) -> int:
    """Inputs that every living neuron reads: the budget shared out, at least one and at most all."""
    return max(1, min(inputs, budget // int(alive.sum())))


def _gamma(fqn: str, dimensions: int, given: float | Mapping[str, float] | None, model: nn.Module) -> float:
    kind = "conv" if dimensions > 2 else "linear"
    value: float | None = None
    if isinstance(given, Mapping):
        named = [gamma for pattern, gamma in given.items() if fnmatchcase(fqn, pattern)]
        value = named[0] if named else given.get(kind)
    else:
        value = given
    if value is None:
        value = TRANSFORMER_GAMMA if kind == "linear" and _attentive(model) else CONVOLUTION_GAMMA
    if not 0.0 <= value <= 1.0:
        raise UserError(f"gamma must lie in [0, 1], got {value} for {fqn}")
    return value


def _attentive(model: nn.Module) -> bool:
    """Whether a model looks like a transformer: by attention or normalization of layers, not of batches."""
    names = [type(module).__name__ for module in model.modules()]
    graph = getattr(model, "graph", None)
    names += [str(node.target) for node in graph.nodes] if isinstance(graph, torch.fx.Graph) else []
    return any(word in name for name in names for word in _ATTENTIVE)
