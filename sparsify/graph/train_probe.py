"""The cheap answer to what training mode changes: two runs on fake tensors that list the functions called.

Capturing a model a second time, in training mode, costs as much as the first time. Most models call the same
functions with the same numbers in both modes, and only switch dropout and batch normalisation on: then
nothing more need be known. Whatever this probe cannot be sure of, it leaves to the second capture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_map, tree_map_only

from sparsify.graph.canonical_owners import path_below, qualified
from sparsify.graph.example import Example
from sparsify.graph.prepare import traceable

_SDPA = F.scaled_dot_product_attention
_SWITCHED: Mapping[Any, str] = {
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
        "training",
    ),
    F.batch_norm: "training",
    _SDPA: "dropout_p",
}
"""Functions that the graph has a module for, and the argument that follows the mode."""

_SIGNATURES = {function: inspect.signature(function) for function in _SWITCHED if function is not _SDPA}
_SDPA_ORDER = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class _Unsure(Exception):  # noqa: N818 - a verdict, caught in this file
    """The runs cannot be compared."""


_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    _Unsure,
)
"""What a user's code may raise on fake tensors; it says only that a capture is needed."""


def same_in_training(model: nn.Module, example: Example) -> dict[str, Any] | None:
    """Compares what a model calls in eval and in training mode.

    Args:
        model: The user's model; left as it was.
        example: Example inputs.

    Returns:
        Attention dropout by module path, as `train_mode.train_record` has it, where nothing else differs;
        None where something else does or the model does not run on fake tensors.
    """
    if len(list(model.named_modules())) != len(list(model.named_modules(remove_duplicate=False))):
        return None  # a shared module has several paths, and calls do not say which one they took
    try:
        evaluated, _ = _calls(model, example, training=False)
        trained, dropouts = _calls(model, example, training=True)
    except _FAILURES:
        return None
    return {path: {"attention_dropout": p} for path, p in dropouts.items()} if evaluated == trained else None


def _calls(model: nn.Module, example: Example, *, training: bool) -> tuple[list[Any], dict[str, float]]:
    """Functions with their arguments by module path, in order, and the attention dropouts among them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    args, kwargs = tree_map_only(Tensor, mode.from_tensor, (example.args, example.kwargs))
    with traceable(model, training=training) as prepared, torch.no_grad():
        listing = _Listing({module: path for path, module in prepared.named_modules()})
        tensors = (*prepared.named_parameters(), *prepared.named_buffers())
        state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors}
        with mode, listing.following_modules(), listing:
            functional_call(prepared, state, args, kwargs)
    return listing.calls, listing.dropouts


class _Listing(TorchFunctionMode):
    """Lists calls of torch functions.

    Args:
        paths: Path of every module.
    """

    def __init__(self, paths: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.dropouts: dict[str, float] = {}
        self._paths = paths
        self._stack: list[nn.Module] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Notes a call, then makes it."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and not isinstance(args[0], FakeTensor):
            raise _Unsure  # it would change a tensor of the user's that is neither parameter nor buffer
        if name != "__get__":
            self._note(func, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        module = self._stack[-1] if self._stack else None
        if isinstance(module, _BatchNorm) and func is Tensor.add_:
            return  # the count of batches
        path = self._paths.get(module, "") if module is not None else ""
        if func in _SWITCHED:
            given = dict(self._bound(func, args, kwargs))
            switch = given.pop(_SWITCHED[func], None)
            if func is _SDPA and switch:
                self._attention(path_below(path, qualified(type(module)), "sdpa"), float(switch))
            args, kwargs = (), given
        self.calls.append(
            (path, resolve_name(func) or str(func), tree_map(_plain, (tuple(args), dict(kwargs))))
        )

    def _attention(self, path: str, dropout: float) -> None:
        if self.dropouts.setdefault(path, dropout) != dropout:
            raise _Unsure

    @staticmethod
    def _bound(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        if func is _SDPA:
            return {**dict(zip(_SDPA_ORDER, args, strict=False)), **kwargs}
        bound = _SIGNATURES[func].bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Keeps track of the module whose forward runs."""

        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _plain(argument: Any) -> Any:
    """An argument in a form that can be compared: tensors by shape and type."""
    if isinstance(argument, Tensor):
        return (tuple(argument.shape), argument.dtype)
    if isinstance(argument, slice):
        return tuple(_plain(part) for part in (argument.start, argument.stop, argument.step))
    if isinstance(argument, (nn.Module, torch.Generator)):
        return type(argument)
    return argument
