"""Sparse Parallel: σ(θᵀx) becomes c · Σ_j σ(θ_jᵀx), every θ_j of the layer's shape and masked.

With density 1/n in each of n branches the FLOPs are those of the layer (Sparse-IFT, arXiv 2303.11525). What
follows the layer, a normalisation and an activation, moves into the branches; each has a normalisation of its
own. c keeps the second moment of the sum at that of the layer (`scaling.moments`); it is not in the paper.
"""

from __future__ import annotations

import copy
from functools import reduce

import torch
from torch import nn
from torch.fx import GraphModule, Node

from sparsify.passes.building import branch, default_norm
from sparsify.passes.drop_in import Call, DropIn, Site, inserted

aten = torch.ops.aten


class Parallel(DropIn):
    """Replaces layers by sums of branches."""

    name = "parallel"

    def replace(self, graph: GraphModule, site: Site) -> None:
        """Builds `branches` and `norms` and sums them up at every call."""
        layer = site.layer
        count = layer.branches
        site.root.branches = nn.ModuleList(branch(site.template) for _ in range(count))
        if site.inside.norm:
            norm = self._norm(graph, site)
            site.root.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(count))
        factor = self.context.scaling[layer.tensors[0].fqn].forward
        for call in site.calls:
            with graph.graph.inserting_before(call.node):
                total = self._sum(graph, site, call)
                if factor != 1.0:
                    scaled = graph.graph.call_function(aten.mul.Tensor, (total, factor))
                    total = inserted(scaled, call.node, self.name)
            call.end.replace_all_uses_with(total)
            for node in (*reversed(call.activation), call.norm, call.node):
                if node is not None:
                    graph.graph.erase_node(node)

    def _norm(self, graph: GraphModule, site: Site) -> nn.Module:
        """The normalisation of a branch; that of the model leaves its place."""
        if not site.inside.follows:
            return default_norm(site.template, site.layer.kind, site.layer.shape[0])
        nodes = [call.norm for call in site.calls]
        path = str(nodes[0].target) if nodes[0] is not None else ""
        stranger = next((node for node in site.index.calls[path] if node not in nodes), None)
        if stranger is not None:
            raise self.refuse(site.layer, f"{path}, which would move into its branches, is called elsewhere")
        norm = graph.get_submodule(path)
        self.check_untied(site.layer, [f"{path}.{leaf}" for leaf in norm._parameters])
        parent, _, leaf = path.rpartition(".")
        del graph.get_submodule(parent)._modules[leaf]
        return norm

    def _sum(self, graph: GraphModule, site: Site, call: Call) -> Node:
        terms = [self._term(graph, site, call, index) for index in range(site.layer.branches)]

        def add(left: Node, right: Node) -> Node:
            return inserted(graph.graph.call_function(aten.add.Tensor, (left, right)), call.node, self.name)

        return reduce(add, terms)

    def _term(self, graph: GraphModule, site: Site, call: Call, index: int) -> Node:
        """One branch: the layer, the normalisation, the activation."""
        made = graph.graph.call_module(f"{site.path}.branches.{index}", (call.node.args[0],))
        result = inserted(made, call.node, self.name)
        if site.inside.norm:
            normed = graph.graph.call_module(f"{site.path}.norms.{index}", (result,))
            result = inserted(normed, call.norm or call.node, self.name)
        if site.inside.operator is not None:
            active = graph.graph.call_function(site.inside.operator, (result,))
            return inserted(active, call.node, self.name)
        return self.copied(graph, call, result)
