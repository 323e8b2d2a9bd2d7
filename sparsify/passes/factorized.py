"""Sparse Factorized: θᵀx becomes Vᵀσ(Uᵀx) with U: Din×r and V: r×Dout, both masked (or U only).

With r = Din·Dout / ((Din+Dout)·ρ) the FLOPs are those of the layer (Sparse-IFT, arXiv 2303.11525). U carries
the geometry of a convolution, V is pointwise and carries the bias. Between them stand a normalisation of r
features and a copy of the activation that follow the layer; its own stay behind V.
"""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from sparsify.passes.building import (
    default_norm,
    inner_factor,
    norm_of_rank,
    outer_factor,
    slope_of_rank,
)
from sparsify.passes.drop_in import Call, DropIn, Site, inserted


class Factorized(DropIn):
    """Replaces layers by two factors."""

    name = "factorized"

    def replace(self, graph: GraphModule, site: Site) -> None:
        """Builds `u`, `norm` and `v` and calls them one after the other."""
        rank = site.layer.rank
        site.root.u = inner_factor(site.template, rank)
        if site.inside.norm:
            site.root.norm = self._norm(graph, site)
        slopes = self._slopes(graph, site)
        if slopes:
            site.root.activation = nn.ModuleList(slopes)
        site.root.v = outer_factor(site.template, rank, bias=True)
        for call in site.calls:
            with graph.graph.inserting_before(call.node):
                made = graph.graph.call_module(f"{site.path}.u", (call.node.args[0],))
                result = inserted(made, call.node, self.name)
                if site.inside.norm:
                    normed = graph.graph.call_module(f"{site.path}.norm", (result,))
                    result = inserted(normed, call.norm or call.node, self.name)
                result = self._activated(graph, site, call, result)
                made = graph.graph.call_module(f"{site.path}.v", (result,))
                result = inserted(made, call.node, self.name)
            call.node.replace_all_uses_with(result)
            graph.graph.erase_node(call.node)

    def _norm(self, graph: GraphModule, site: Site) -> nn.Module:
        rank = site.layer.rank
        if not site.inside.follows:
            return default_norm(site.template, site.layer.kind, rank)
        node = site.calls[0].norm
        norm = graph.get_submodule(str(node.target) if node is not None else "")
        return norm_of_rank(norm, rank, len(site.layer.shape) - 2)

    def _slopes(self, graph: GraphModule, site: Site) -> list[nn.Module]:
        """Modules of the activation, with slopes of their own over r features."""
        nodes = [node for node in site.calls[0].activation if node.op == "call_module"]
        modules = [graph.get_submodule(str(node.target)) for node in nodes]
        return [slope_of_rank(module, site.layer.rank) for module in modules if isinstance(module, nn.PReLU)]

    def _activated(self, graph: GraphModule, site: Site, call: Call, value: Node) -> Node:
        if site.inside.operator is not None:
            return inserted(graph.graph.call_function(site.inside.operator, (value,)), call.node, self.name)
        return self.copied(graph, call, value, f"{site.path}.activation")
