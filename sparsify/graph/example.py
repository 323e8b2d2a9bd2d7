"""The example that a model is traced with: its names, and which of its dimensions stay open."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_map_with_path

from sparsify.errors import UserError


@dataclass(frozen=True)
class Example:
    """Example inputs of a call.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs, in the order of forward's parameters.
        signature: Signature of forward.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    signature: inspect.Signature

    @classmethod
    def of(
        cls, model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None, shapes: Any
    ) -> tuple[Example, Any]:
        """Fits an example to a model's forward.

        Keyword inputs are taken by position where forward knows none of their names, as in `--input 'x:…'`.

        Returns:
            The example, and `shapes` under the names that it has now.

        Raises:
            UserError: When forward does not take them.
        """
        if not isinstance(args, (tuple, list)):
            raise UserError(f"args must be a tuple of inputs, not {type(args).__name__}: write (x,)")
        args, kwargs = tuple(args), dict(kwargs or {})
        signature = inspect.signature(model.forward)
        parameters = signature.parameters.values()
        takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if kwargs and not args and not set(kwargs) & set(takes) and len(kwargs) <= len(places):
            if isinstance(shapes, dict):
                shapes = {
                    to: shapes[name] for to, name in zip(places, kwargs, strict=False) if name in shapes
                }
            args, kwargs = tuple(kwargs.values()), {}
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UserError(f"the example does not fit {type(model).__name__}.forward: {error}") from error
        order = {name: position for position, name in enumerate(takes)}
        kwargs = dict(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
        return cls(args, kwargs, signature), shapes

    def opened(self, asked: Any, dynamic: bool) -> tuple[Example, Any]:
        """The example with open dimensions of size 1 repeated to 2, which export would take for constants.

        Args:
            asked: Dynamic shapes that the user gave, or None.
            dynamic: Whether, without them, the usual dimensions are open.

        Returns:
            The example (this one where nothing had to be repeated), and the dynamic shapes for export.
        """
        inputs = self.signature.bind(*self.args, **self.kwargs).arguments
        if asked is not None:
            by_name = asked if isinstance(asked, Mapping) else dict(zip(inputs, asked, strict=False))
            return self._repeated(lambda name, tensor: _asked_dims(by_name.get(name), tensor)), asked
        if not dynamic:
            return self, None
        shapes = {name: _open_dims(name, item) for name, item in inputs.items()}
        return self._repeated(_usual_dims), shapes

    def _repeated(self, dims: Callable[[str, Tensor], tuple[int, ...]]) -> Example:
        changed = False

        def of_item(name: str, item: Any) -> Any:
            def of_leaf(path: Any, leaf: Any) -> Any:
                nonlocal changed
                if isinstance(leaf, Tensor):
                    for dim in dims(_label(name, path), leaf):
                        if leaf.shape[dim] == 1:
                            leaf, changed = torch.cat([leaf, leaf], dim), True
                return leaf

            return tree_map_with_path(of_leaf, item)

        names = [*self.signature.parameters, *[""] * len(self.args)]
        args = tuple(of_item(name, item) for name, item in zip(names, self.args, strict=False))
        kwargs = {name: of_item(name, item) for name, item in self.kwargs.items()}
        return Example(args, kwargs, self.signature) if changed else self


def _label(name: str, path: Any) -> str:
    return name + "".join(str(key) for key in path)


def _usual_dims(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Dimensions that are left open: the batch, and the length of integer and mask inputs."""
    integral = not tensor.is_floating_point() and not tensor.is_complex()
    masked = "mask" in name and tensor.ndim == 2
    return tuple(range(min(tensor.ndim, 2 if integral or masked else 1)))


def _asked_dims(spec: Any, tensor: Tensor) -> tuple[int, ...]:
    """Dimensions that a specification of one tensor opens."""
    if isinstance(spec, Mapping):
        named = [(dim, wish) for dim, wish in spec.items() if isinstance(dim, int)]
    elif isinstance(spec, (list, tuple)):
        named = list(enumerate(spec))
    else:
        return ()
    closed = (None, Dim.STATIC)
    return tuple(
        d for d, wish in named if d < tensor.ndim and not isinstance(wish, int) and wish not in closed
    )


def _open_dims(name: str, item: Any) -> Any:
    def of_leaf(path: Any, leaf: Any) -> Any:
        return (
            dict.fromkeys(_usual_dims(_label(name, path), leaf), Dim.AUTO)
            if isinstance(leaf, Tensor)
            else None
        )

    return tree_map_with_path(of_leaf, item)
