"""Walks a canonical graph once and finds out how its dimensions depend on each other.

Every parameter dimension starts as a symbol of its own; the rule of each operator says what its results'
dimensions are and which sizes it takes for equal. An operator without a rule, or one whose rule finds no
unique answer, pins every width that it touches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from sparsify.errors import Refusal
from sparsify.graph import (
    rules_elementwise,
    rules_index,
    rules_layers,
    rules_products,
    rules_scalars,
    rules_sections,
    rules_views,
)
from sparsify.graph.dimensions import (
    RECURRENT,
    Call,
    Dimensions,
    Unsolved,
    Value,
    flat_sizes,
    module_path,
    operator_name,
)
from sparsify.graph.poly import Poly
from sparsify.graph.roles import data_nodes
from sparsify.graph.rules_elementwise import Rule
from sparsify.graph.rules_layers import MODULE_RULES, ModuleRule
from sparsify.graph.rules_scalars import FUNCTION_RULES

RULES: dict[str, Rule] = {
    **rules_elementwise.RULES,
    **rules_views.RULES,
    **rules_sections.RULES,
    **rules_index.RULES,
    **rules_products.RULES,
    **rules_layers.RULES,
    **rules_scalars.RULES,
}


def couple(module: GraphModule) -> Dimensions:
    """Dimensions of every node of a canonical graph, with all equations stated and solved.

    Args:
        module: Canonical graph module; every node has ``meta["val"]``.
    """
    dimensions = Dimensions(module, data_nodes(module.graph))
    for node in module.graph.nodes:
        dimensions.values[node] = _visit(node, dimensions)
    return dimensions


def _visit(node: Node, dimensions: Dimensions) -> Value:
    if node.op == "placeholder":
        return dimensions.meta(node.meta.get("val"))
    if node.op == "get_attr":
        return _attribute(node, dimensions)
    if node.op == "output":
        for source in node.all_input_nodes:
            dimensions.pin(dimensions.values[source], "width of a model output")
        return None
    before = len(dimensions.literals)
    try:
        value = _apply(node, dimensions)
        _check(node, value, dimensions)
    except Unsolved as unsolved:
        reason = f"{operator_name(node)}: {unsolved}"
        value = _refuse(node, "ambiguous-shape", reason, dimensions)
        for _, _, literal in dimensions.literals[before:]:
            dimensions.pin(literal, f"{reason} ({module_path(node) or 'top level'})")
    return value


def _apply(node: Node, dimensions: Dimensions) -> Value:
    if node.op == "call_module":
        module = dimensions.module.get_submodule(str(node.target))
        module_rule = _module_rule(module)
        if module_rule is None:
            reason = f"no rule for the module {type(module).__name__}"
            return _refuse(node, "unknown-module", reason, dimensions)
        return module_rule(node, module, dimensions)
    if node.target in FUNCTION_RULES:
        return FUNCTION_RULES[node.target](node, dimensions)
    if isinstance(node.target, torch._ops.OpOverload):
        kept = _kept(operator_name(node))
        if kept is not None:
            return _refuse(node, *kept, dimensions)
        rule = RULES.get(operator_name(node))
        if rule is None and torch.Tag.pointwise in node.target.tags:
            rule = rules_elementwise.broadcast
        if rule is not None:
            return rule(Call.of(node), dimensions)
    return _refuse(node, "unknown-operator", f"no rule for the operator {node.target}", dimensions)


def _kept(name: str) -> tuple[str, str] | None:
    """Rule and reason of an operator that keeps the size of everything it touches."""
    if name in RECURRENT:
        return "recurrent", f"{name.partition('_')[0].upper()}: recurrent layers are not transformed"
    if name.startswith("fft_"):
        return "fourier", f"a Fourier transform ({name}) gives every place in a dimension a meaning"
    return None


def _module_rule(module: nn.Module) -> ModuleRule | None:
    return next((MODULE_RULES[kind] for kind in type(module).__mro__ if kind in MODULE_RULES), None)


def _attribute(node: Node, dimensions: Dimensions) -> Value:
    owner_path, _, name = str(node.target).rpartition(".")
    tensor = getattr(dimensions.module.get_submodule(owner_path), name)
    if isinstance(tensor, nn.Parameter):
        return dimensions.parameter(tensor)
    return dimensions.meta(tensor) if isinstance(tensor, Tensor) else None


def _check(node: Node, value: Value, dimensions: Dimensions) -> None:
    """A rule must reproduce what the trace recorded."""
    recorded = dimensions.meta(node.meta.get("val"))
    sizes, expected = list(flat_sizes(value)), list(flat_sizes(recorded))
    if len(sizes) != len(expected):
        raise Unsolved("its rule expects another number of dimensions")
    for size, present in zip(sizes, expected, strict=True):
        if present.constant is not None and dimensions.widths.value(size) != present:
            foretold = dimensions.widths.resolve(size)
            raise Unsolved(f"its rule expects size {foretold}, the trace has {present}")


def _refuse(node: Node, rule: str, reason: str, dimensions: Dimensions) -> Value:
    path = module_path(node)
    touched = [dimensions.values.get(source) for source in node.all_input_nodes]
    if node.op == "call_module":
        module = dimensions.module.get_submodule(path)
        touched += [dimensions.parameter(tensor) for tensor in module.parameters()]
    free = any(dimensions.widths.free(size) for size in _sizes(touched))
    for value in touched:
        dimensions.pin(value, f"{reason} ({path or 'top level'})")
    refusal = Refusal(path, rule, f"{reason}; what it touches keeps its width")
    if free and refusal not in dimensions.refusals:
        dimensions.refusals.append(refusal)
    return dimensions.meta(node.meta.get("val"))


def _sizes(values: Iterable[Value]) -> Iterable[Poly]:
    for value in values:
        yield from flat_sizes(value)


def settle(dimensions: Dimensions, parameters: Iterable[tuple[Poly, ...]]) -> None:
    """Pins what is left open once all equations are stated.

    A width that no parameter has stays. Where two widths multiply, as the two factors of one dimension, one
    of them stays: a number of repetitions, else the leading factor.

    Args:
        dimensions: The equations.
        parameters: Shapes of all parameters.
    """
    widths = dimensions.widths
    shapes = list(parameters)
    sizes = [size for shape in shapes for size in shape] + [literal for _, _, literal in dimensions.literals]
    for size in sizes:
        for monomial in list(widths.resolve(size).terms):
            _leave_one(monomial, dimensions)
    owned = {name for shape in shapes for size in shape for name in widths.free(size)}
    for name in [name for name in widths.values if name not in owned]:
        if widths.free(Poly.symbol(name)) == [name]:
            widths.pin(Poly.symbol(name), "")


def _leave_one(monomial: tuple[str, ...], dimensions: Dimensions) -> None:
    widths = dimensions.widths
    free = [name for name in monomial if widths.free(Poly.symbol(name)) == [name]]
    while len(free) > 1:
        choice = next((name for name in free if name in widths.ratios), None) or widths.oldest(free)
        widths.pin(Poly.symbol(choice), "one of two factors of a dimension; the other one grows")
        free = [name for name in free if name != choice]
