"""A traced dense model as a module of ours, which can be saved and trained like a transformed one."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sparsify.graph.canonical import complete
from sparsify.graph.traced import Traced
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import attach_hooks
from sparsify.passes.record import Record


def wrap(traced: Traced) -> SparseGraphModule:
    """Copies a traced model into a SparseGraphModule whose record has no plan.

    Args:
        traced: The model; left as it is, nothing is shared with it. Masks beside its parameters are adopted.
    """
    memo: dict[int, object] = {}
    root = nn.Module()
    root._modules = copy.deepcopy(traced.module._modules, memo)
    root._parameters = copy.deepcopy(traced.module._parameters, memo)
    root._buffers = copy.deepcopy(traced.module._buffers, memo)
    root._non_persistent_buffers_set = set(traced.module._non_persistent_buffers_set)
    with torch.no_grad():
        for parameter in root.parameters():
            parameter.data = parameter.data.contiguous()
    module = SparseGraphModule(root, copy.deepcopy(traced.module.graph))
    complete(module, root)
    module.training = traced.module.training
    module.sparsify = Record.of_dense(traced)
    attach_hooks(module)
    return module
