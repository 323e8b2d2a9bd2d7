"""Sparse Doped: θᵀx becomes VᵀUᵀx + θᵀx with U and V dense, of low rank, and θ masked to density ρ.

With r = s·Din·Dout / (Din+Dout) the FLOPs are those of the layer (Sparse-IFT, arXiv 2303.11525; its released
code masks U and V too, and is not at equal FLOPs). U and the sparse part carry the geometry of a convolution,
V is pointwise, the sparse part has the bias. The input is multiplied by 1/√2 for both paths, so that their
sum has the variance of one; the bias is not.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from sparsify.passes.building import branch, inner_factor, outer_factor
from sparsify.passes.drop_in import Call, DropIn, Site, inserted

aten = torch.ops.aten


class Doped(DropIn):
    """Replaces layers by a product of low rank beside a sparse one."""

    name = "doped"

    def replace(self, graph: GraphModule, site: Site) -> None:
        """Builds `u`, `v` and `sparse` and adds them up at every call."""
        site.root.u = inner_factor(site.template, site.layer.rank)
        site.root.v = outer_factor(site.template, site.layer.rank, bias=False)
        site.root.sparse = branch(site.template)
        for call in site.calls:
            self._rewrite(graph, site, call)

    def _rewrite(self, graph: GraphModule, site: Site, call: Call) -> None:
        sparse = next(tensor.fqn for tensor in site.layer.tensors if tensor.part == "sparse")
        factor = self.context.scaling[sparse].forward
        add, module = graph.graph.call_function, graph.graph.call_module
        with graph.graph.inserting_before(call.node):
            x = call.node.args[0]
            if factor != 1.0:
                x = inserted(add(aten.mul.Tensor, (x, factor)), call.node, self.name)
            inner = inserted(module(f"{site.path}.u", (x,)), call.node, self.name)
            low = inserted(module(f"{site.path}.v", (inner,)), call.node, self.name)
            kept = inserted(module(f"{site.path}.sparse", (x,)), call.node, self.name)
            total = inserted(add(aten.add.Tensor, (low, kept)), call.node, self.name)
        call.node.replace_all_uses_with(total)
        graph.graph.erase_node(call.node)
