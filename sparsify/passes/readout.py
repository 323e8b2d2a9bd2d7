"""Puts the forward multiplier of a readout layer into the graph.

μP and SμPar compute the readout of α_out·x/m_d (arXiv 2405.15743): its input is multiplied, so that its bias
is not.
"""

from __future__ import annotations

import torch
import torch.fx

from sparsify.graph.verify import propagate
from sparsify.passes.contract import Pass, PassResult, mark
from sparsify.planning import Plan

MULTIPLY = torch.ops.aten.mul.Tensor


class ReadoutMultiplier(Pass):
    """Multiplies the input of every layer whose scaling asks for it; counts the multiplications."""

    name = "readout multiplier"

    def run(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Inserts one `aten.mul` before every call of such a layer."""
        calls = self._calls(graph)
        for node, factor in calls:
            source = node.args[0]
            with graph.graph.inserting_before(node):
                scaled = graph.graph.call_function(MULTIPLY, (source, factor))
            scaled.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
            mark(scaled, self.name, node.name)
            node.args = (scaled, *node.args[1:])
        if calls:
            graph.recompile()
            propagate(graph)
        return PassResult(graph, len(calls))

    def ensures(self, graph: torch.fx.GraphModule, plan: Plan) -> None:
        """Every such call reads its multiplied input."""
        for node, factor in self._calls(graph):
            source = node.args[0]
            if not (
                isinstance(source, torch.fx.Node) and source.target is MULTIPLY and source.args[1] == factor
            ):
                raise self.failed(f"node {node.name} does not read its input multiplied by {factor}")

    def _calls(self, graph: torch.fx.GraphModule) -> list[tuple[torch.fx.Node, float]]:
        factors = {}
        for layer in self.context.facts.layers:
            scale = self._scale(layer.weight)
            if layer.role == "readout" and scale != 1.0:
                factors[layer.fqn], factors[layer.node] = scale, scale
        nodes = graph.graph.nodes
        called = [node for node in nodes if node.op == "call_module" and node.target in factors]
        plain = [node for node in nodes if node.op == "call_function" and node.name in factors]
        return [(node, factors[str(node.target)]) for node in called] + [(n, factors[n.name]) for n in plain]

    def _scale(self, weight: str) -> float:
        scaling = self.context.scaling
        names = next((tie for tie in self.context.traced.ties if weight in tie), (weight,))
        return next((scaling[name].forward for name in names if name in scaling), 1.0)
