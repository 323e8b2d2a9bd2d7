"""Builds a traced model at other widths, from nothing but its facts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from sparsify.graph.facts import Facts, facts
from sparsify.graph.resize import match_parameters
from sparsify.graph.trace import trace
from sparsify.graph.traced import Traced
from sparsify.graph.verify import with_literal
from tests.models import MINILM, MODELS


@cache
def model_facts(name: str) -> tuple[Traced, Facts]:
    """One of the shared models, traced once."""
    entry = MINILM if name == "minilm" else MODELS[name]
    traced = trace(entry.model(), *entry.example(2, 9))
    return traced, facts(traced)


def facts_of(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Traced, Facts]:
    traced = trace(model.eval(), args, kwargs)
    return traced, facts(traced)


def present(found: Facts) -> dict[str, int]:
    return {group.id: group.size for group in found.groups}


def grown(found: Facts) -> dict[str, int]:
    """Every width that may grow gets a size of its own."""
    free = [group for group in found.groups if group.pinned is None]
    return present(found) | {group.id: group.size + 1 + index % 5 for index, group in enumerate(free)}


def widened(traced: Traced, found: Facts, sizes: Mapping[str, int]) -> GraphModule:
    """A copy of the traced model with parameters, module settings and literals at other widths."""
    result = copy.deepcopy(traced.module)
    shared: dict[int, nn.Parameter] = {}
    for name, parameter in list(result.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if id(parameter) not in shared:
            shape = [size.evaluate(sizes) for size in found.parameters[name]]
            shared[id(parameter)] = nn.Parameter(torch.randn(shape) * 0.1)
        result.get_submodule(owner)._parameters[leaf] = shared[id(parameter)]
    for name, buffer in list(result.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        shape = [size.evaluate(sizes) for size in found.parameters[name]]
        if list(buffer.shape) != shape:
            result.get_submodule(owner)._buffers[leaf] = torch.ones(shape)
    for module in result.modules():
        match_parameters(module)
    nodes = {node.name: node for node in result.graph.nodes}
    for literal in found.literals:
        node, value = nodes[literal.node], literal.value.evaluate(sizes)
        if isinstance(literal.path[0], str):
            name, rest = literal.path[0], literal.path[1:]
            node.kwargs = {**node.kwargs, name: with_literal(node.kwargs[name], rest, value)}
        else:
            node.args = with_literal(tuple(node.args), literal.path, value)
    result.recompile()
    return result
