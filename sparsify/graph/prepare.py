"""Puts a user's model into the state in which it is traced, and back again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune


@contextmanager
def traceable(model: nn.Module, *, training: bool = False) -> Iterator[nn.Module]:
    """The model in eval (or training) mode, caches off, pruning and parametrizations folded.

    Everything is as before at the end. A pruned parameter becomes a plain one, `weight_orig *
    weight_mask`, with the mask beside it as a bool buffer; a parametrized one becomes a plain one, too.
    """
    with ExitStack() as stack:
        stack.enter_context(_mode(model, training))
        stack.enter_context(_no_cache(model))
        stack.enter_context(_unparametrized(model))
        stack.enter_context(_folded(model))
        stack.enter_context(_no_fast_path())
        yield model


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was


@contextmanager
def _no_cache(model: nn.Module) -> Iterator[None]:
    """Turns `use_cache` off in the configurations of transformers models: a cache is no pytree."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        for candidate in (config, *(vars(config).values() if hasattr(config, "__dict__") else ())):
            if getattr(candidate, "use_cache", False) is True:
                configs[id(candidate)] = candidate
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """nn.MultiheadAttention takes its composite path, in which its linear layers can be seen."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def pruned(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(module path, module, parameter name) of everything pruned with torch.nn.utils.prune."""
    return [
        (path, module, hook._tensor_name)
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]


@contextmanager
def _folded(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for _, module, name in pruned(model):
            stack.enter_context(_folded_parameter(module, name))
        yield


@contextmanager
def _folded_parameter(module: nn.Module, name: str) -> Iterator[None]:
    hooks = {
        key: hook
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == name
    }
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    attribute = module.__dict__.pop(name, None)
    original, mask = module._parameters.pop(f"{name}_orig"), module._buffers[f"{name}_mask"]
    if original is None or mask is None:
        raise KeyError(name)
    for key in hooks:
        del module._forward_pre_hooks[key]
    module._parameters[name] = nn.Parameter(original.detach() * mask, requires_grad=original.requires_grad)
    module._buffers[f"{name}_mask"] = mask.to(torch.bool)
    try:
        yield
    finally:
        module._parameters, module._buffers = parameters, buffers
        module._forward_pre_hooks.update(hooks)
        if attribute is not None:
            module.__dict__[name] = attribute


@contextmanager
def _unparametrized(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                stack.enter_context(_plain(module))
        yield


@contextmanager
def _plain(module: nn.Module) -> Iterator[None]:
    """One module with plain parameters of the values that its parametrizations give, in eval mode.

    torch's own removal cannot be undone, and on a copy it would change the class that both share.
    """
    kind, stores = type(module), (dict(module._modules), dict(module._parameters), dict(module._buffers))
    parametrizations: Any = module.parametrizations
    parametrizations.eval()
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    learnt = {name: any(p.requires_grad for p in parametrizations[name].parameters()) for name in values}
    module.__class__ = kind.__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        module._parameters[name] = nn.Parameter(value, requires_grad=learnt[name])
    try:
        yield
    finally:
        module.__class__ = kind
        module._modules, module._parameters, module._buffers = stores
