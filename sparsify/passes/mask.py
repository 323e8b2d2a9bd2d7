"""Gives every planned layer its mask: exactly `nnz` active weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx
from torch import Tensor

from sparsify.masks.patterns import parse_pattern
from sparsify.masks.state import attach_hooks, masked_parameters, set_mask, verify_masks
from sparsify.passes.contract import Pass, PassResult
from sparsify.passes.disjoint import disjoint_masks
from sparsify.passes.randomness import generator
from sparsify.planning import Plan


class Mask(Pass):
    """Random masks for new weights; kept ones have theirs already. Counts the masks.

    A layer that the plan leaves alone keeps the mask it came with, if its weights are kept. On the meta
    device masks have shapes and no entries.
    """

    name = "mask"

    def run(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Sets the masks and zeroes the weights outside of them."""
        wanted = planned_counts(plan)
        branches = self._linear_branches(plan)
        pattern = parse_pattern(plan.options.pattern)
        chosen = masked_parameters(graph) if self.context.init == "preserve" else {}
        for fqn, nnz in wanted.items():
            if fqn in chosen:
                continue
            path, _, leaf = fqn.rpartition(".")
            weight = graph.get_parameter(fqn)
            if weight.is_meta:
                mask = torch.empty_like(weight, dtype=torch.bool)
            elif fqn in branches:
                mask = next(branches[fqn])
            else:
                source = generator(self.context.seed, "mask", fqn, weight.device)
                mask = pattern.random(weight.shape, nnz, source)
            set_mask(graph.get_submodule(path), leaf, mask)
        attach_hooks(graph)
        return PassResult(graph, len(wanted))

    def _linear_branches(self, plan: Plan) -> dict[str, Iterator[Tensor]]:
        """Masks of branches without a nonlinearity, which together are one matrix: no entry twice."""
        found: dict[str, Iterator[Tensor]] = {}
        for layer in plan.layers:
            if layer.family == "parallel" and layer.nonlinearity == "none":
                pattern = parse_pattern(plan.options.pattern)
                masks = disjoint_masks(layer.tensors, self.context.seed, pattern)
                found |= dict.fromkeys((tensor.fqn for tensor in layer.tensors), masks)
        return found

    def ensures(self, graph: torch.fx.GraphModule, plan: Plan) -> None:
        """Every mask has its exact count and pattern, no other layer got one, weights outside are zero."""
        found = masked_parameters(graph)
        wanted = planned_counts(plan)
        given = masked_parameters(self.context.traced.module) if self.context.init == "preserve" else {}
        stayed = set(given) & {name for name, _ in graph.named_parameters()}
        if set(found) != set(wanted) | stayed:
            raise self.failed(f"masks differ from the plan at {sorted(set(found) ^ (set(wanted) | stayed))}")
        pattern = parse_pattern(plan.options.pattern)
        for fqn, nnz in wanted.items():
            mask = found[fqn].mask
            if mask.is_meta:
                continue
            if int(torch.count_nonzero(mask)) != nnz:
                raise self.failed(f"{fqn} has another number of active weights than {nnz}")
            pattern.present(mask).check(mask)
        verify_masks(graph)


def planned_counts(plan: Plan) -> dict[str, int]:
    """Active weights by parameter name; tied layers count once."""
    return {
        tensor.fqn: tensor.nnz
        for layer in plan.layers
        if layer.masked
        for tensor in layer.tensors
        if tensor.masked
    }
