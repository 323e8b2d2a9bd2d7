"""Puts the forward multipliers of embeddings, first layers and readouts into the graph.

μP and SμPar compute α_in·x behind an embedding and the readout of α_out·x/m_d (arXiv 2405.15743). Layers that
multiply have their input multiplied, so that their bias is not; an embedding, its output.
"""

from __future__ import annotations

import torch
import torch.fx

from sparsify.errors import UserError
from sparsify.graph.facts import LayerFacts
from sparsify.graph.verify import propagate
from sparsify.passes.contract import Pass, PassResult, mark
from sparsify.passes.parts import DROP_INS
from sparsify.planning import Plan

MULTIPLY = torch.ops.aten.mul.Tensor


class ReadoutMultiplier(Pass):
    """Multiplies the input of every readout whose scaling asks for it; counts the multiplications."""

    name = "readout multiplier"
    roles: tuple[str, ...] = ("readout",)
    option = "output_multiplier"

    def requires(self, graph: torch.fx.GraphModule, plan: Plan) -> None:
        """A layer that α is asked for stands in one piece.

        Raises:
            UserError: A drop-in family took it apart.
        """
        if getattr(self.context.scaling, self.option) == 1.0:
            return
        for layer in plan.layers:
            if layer.role in self.roles and layer.family in DROP_INS:
                raise UserError(
                    f"{self.option}: layer {layer.fqn!r} is {layer.family} here, and has no one place for a "
                    "multiplier; keep it dense, wide or masked in the plan, or multiply in the model itself"
                )

    def run(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Inserts one `aten.mul` at every call of such a layer."""
        calls = self._calls(graph)
        for node, factor, behind in calls:
            source = node if behind else node.args[0]
            with graph.graph.inserting_after(node) if behind else graph.graph.inserting_before(node):
                scaled = graph.graph.call_function(MULTIPLY, (source, factor))
            scaled.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
            mark(scaled, self.name, node.name)
            if behind:
                node.replace_all_uses_with(scaled)
                scaled.args = (node, factor)
            else:
                node.args = (scaled, *node.args[1:])
        if calls:
            graph.recompile()
            propagate(graph)
        return PassResult(graph, len(calls))

    def ensures(self, graph: torch.fx.GraphModule, plan: Plan) -> None:
        """Every such call reads its multiplied input, or is read by its multiplication alone."""
        for node, factor, behind in self._calls(graph):
            made = list(node.users) if behind else [node.args[0]]
            if not all(
                isinstance(one, torch.fx.Node) and one.target is MULTIPLY and one.args[1] == factor
                for one in made
            ):
                raise self.failed(f"node {node.name} is not multiplied by {factor}")

    def _calls(self, graph: torch.fx.GraphModule) -> list[tuple[torch.fx.Node, float, bool]]:
        factors: dict[str, tuple[float, bool]] = {}
        for layer in self.context.facts.layers:
            factor = self.factor(layer) if layer.role in self.roles else 1.0
            if factor != 1.0:
                factors[layer.fqn] = factors[layer.node] = factor, layer.role == "embedding"
        nodes = graph.graph.nodes
        called = [node for node in nodes if node.op == "call_module" and node.target in factors]
        plain = [node for node in nodes if node.op == "call_function" and node.name in factors]
        named = [(node, str(node.target)) for node in called] + [(node, node.name) for node in plain]
        return [(node, *factors[name]) for node, name in named]

    def factor(self, layer: LayerFacts) -> float:
        """What a layer is multiplied by: α_out and the factor for its width, of its weight's entry."""
        scaling = self.context.scaling
        names = next((tie for tie in self.context.traced.ties if layer.weight in tie), (layer.weight,))
        return next((scaling[name].forward for name in names if name in scaling), 1.0)


class InputMultiplier(ReadoutMultiplier):
    """Multiplies what embeddings and first layers put out by α_in; counts the multiplications."""

    name = "input multiplier"
    roles = ("embedding", "input")
    option = "input_multiplier"

    def factor(self, layer: LayerFacts) -> float:
        """α_in, for a table that is the readout's weight too."""
        return self.context.scaling.input_multiplier
