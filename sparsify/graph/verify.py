"""Runs a graph on fake tensors, to see that its shapes fit together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils._pytree import tree_leaves

from sparsify.errors import UnsupportedModelError
from sparsify.graph.dimensions import module_path, operator_name
from sparsify.graph.rescaled import NotRescalableError, Rescaler
from sparsify.graph.resize import match_parameters

#: Called with every node, its arguments and its result.
Watch = Callable[[Node, Any], None]


class ShapeMismatchError(UnsupportedModelError):
    """A node that cannot run on the shapes it gets.

    Attributes:
        node: The node.
    """

    def __init__(self, node: Node, reason: str) -> None:
        path = module_path(node)
        super().__init__(
            f"{operator_name(node)} (node {node.name}{f', in {path}' if path else ''}) cannot run on its "
            f"shapes: {reason}. This is a fault of the rewrite that made them; keep the layers around it."
        )
        self.node = node


def propagate(module: GraphModule, inputs: Sequence[Any] | None = None) -> None:
    """Refreshes ``meta["val"]`` of every node without computing anything.

    Args:
        module: Graph module; its parameters may be real, fake or on the meta device.
        inputs: One value for each placeholder, fake or real; default what the placeholders' ``meta`` records,
            with symbolic batch and lengths.

    Raises:
        UnsupportedModelError: a node cannot run on the shapes it gets.
    """
    recorded = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    values = recorded if inputs is None else list(inputs)
    fakes = Fakes(module, _mode_of([*values, *recorded]), {}, device_of(values))

    def watch(node: Node, value: Any) -> None:
        node.meta["val"] = value

    if inputs is not None or not _rescaled(fakes, recorded):
        run_fake(fakes, values, {}, watch)


def _rescaled(fakes: Fakes, recorded: Sequence[Any]) -> bool:
    """Refreshes values from what they were and one run at the example's sizes.

    Returns:
        False where that is not possible; some values may be refreshed then.
    """
    rescaler = Rescaler(fakes.mode)
    values = _Recorded()

    def watch(node: Node, value: Any) -> None:
        if "val" not in node.meta or not rescaler.refresh(node.meta, value):
            with fakes.active():
                node.meta["val"] = _run_node(node, fakes, values, {})

    try:
        run_fake(Metas(fakes.module, {}), [rescaler.example(value) for value in recorded], {}, watch)
    except (ShapeMismatchError, NotRescalableError):
        return False
    return True


class _Recorded(Mapping[Node, Any]):
    """What nodes are recorded to compute."""

    def __getitem__(self, node: Node) -> Any:
        return node.meta["val"]

    def __iter__(self) -> Iterator[Node]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _mode_of(values: Iterable[Any]) -> FakeTensorMode:
    for value in tree_leaves(list(values)):
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


def device_of(values: Iterable[Any]) -> torch.device:
    """Device of the first tensor among some values; the CPU where there is none."""
    devices = (value.device for value in tree_leaves(list(values)) if isinstance(value, Tensor))
    return next(devices, torch.device("cpu"))


class Fakes:
    """Tensors and modules of a graph module as fake ones, made when first asked for.

    Args:
        module: The graph module.
        mode: Mode of the fake tensors.
        shapes: Other shapes for parameters and buffers, by path.
        device: Where tensors of the meta device are taken to be: where the inputs are.
    """

    def __init__(
        self,
        module: GraphModule,
        mode: FakeTensorMode,
        shapes: Mapping[str, Sequence[int]],
        device: torch.device,
    ) -> None:
        self.module, self.mode, self._shapes, self._device = module, mode, shapes, device
        self._modules: dict[str, nn.Module] = {}

    def tensor(self, value: Any, path: str = "") -> Any:
        """A fake tensor like a real one; anything else as it is."""
        if not isinstance(value, Tensor) or (isinstance(value, FakeTensor) and value.fake_mode is self.mode):
            return value
        device = self._device if value.device.type == "meta" else value.device
        with self.mode:
            return torch.empty(self._shapes.get(path, value.shape), dtype=value.dtype, device=device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes operators compute shapes only."""
        with _converting(self.mode), enable_python_dispatcher(), self.mode:
            yield

    def arguments(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments of a node as they are to be passed."""
        return args, kwargs

    def result(self, value: Any) -> Any:
        """What a node computed as it is to be kept."""
        return value

    def attribute(self, path: str) -> Any:
        """What a get_attr node reads."""
        owner, _, name = path.rpartition(".")
        return self.tensor(getattr(self.module.get_submodule(owner), name), path)

    def submodule(self, path: str) -> nn.Module:
        """A shallow copy of a module that holds fake tensors."""
        if path not in self._modules:
            original = self.module.get_submodule(path)
            clone = copy.copy(original)
            for store in ("_parameters", "_buffers"):
                tensors = getattr(original, store)
                fakes = {name: self.tensor(value, f"{path}.{name}") for name, value in tensors.items()}
                object.__setattr__(clone, store, fakes)
            for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
                object.__setattr__(clone, name, {})
            match_parameters(clone)
            self._modules[path] = clone
        return self._modules[path]


class Metas(Fakes):
    """Tensors and modules of a graph module on the meta device: several times faster than fake ones.

    Sizes must be plain numbers. What a graph says of devices does not matter. Operators without a meta kernel
    fail here, and those that look at values; fake tensors may still know them.

    Args:
        module: The graph module.
        shapes: Other shapes for parameters and buffers, by path.
    """

    def __init__(self, module: GraphModule, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__(module, FakeTensorMode(), shapes, torch.device("meta"))

    def tensor(self, value: Any, path: str = "") -> Any:
        """An empty tensor like a given one; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        return torch.empty(self._shapes.get(path, value.shape), dtype=value.dtype, device=self._device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Nothing has to be set up."""
        yield

    def arguments(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments with every device replaced."""
        return map_aggregate((args, kwargs), _on_meta)

    def result(self, value: Any) -> Any:
        """Results with what was made elsewhere moved here."""
        if isinstance(value, Tensor):
            return value if value.is_meta else self.tensor(value)
        return type(value)(map(self.result, value)) if type(value) in (list, tuple) else value


def _on_meta(argument: Any) -> Any:
    return torch.device("meta") if isinstance(argument, torch.device) else argument


def run_fake(
    fakes: Fakes,
    inputs: Sequence[Any],
    literals: Mapping[Node, Mapping[tuple[int | str, ...], int]],
    watch: Watch,
    known: Mapping[Node, Any] | None = None,
) -> None:
    """Interprets a graph on fake tensors.

    Args:
        fakes: Tensors and modules.
        inputs: One value for each placeholder.
        literals: Sizes to use in place of those baked into nodes.
        watch: Sees each node and what it computed.
        known: Results of nodes that fake tensors cannot compute, since their sizes depend on values.

    Raises:
        ShapeMismatchError: a node cannot run on the shapes it gets.
    """
    environment: dict[Node, Any] = {}
    pending = iter(inputs)
    last_use = _last_uses(fakes.module)
    with torch.no_grad(), fakes.active():
        for node in fakes.module.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                value = fakes.tensor(next(pending))
            elif known is not None and node in known:
                value = fakes.tensor(known[node])
            else:
                value = _run_node(node, fakes, environment, literals.get(node, {}))
            environment[node] = value = fakes.result(value)
            watch(node, value)
            for dead in last_use.get(node, ()):
                environment.pop(dead, None)


@contextmanager
def _converting(mode: FakeTensorMode) -> Iterator[None]:
    """Lets an operator take a real tensor, such as a constant, as a fake one."""
    before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        yield
    finally:
        mode.allow_non_fake_inputs = before


def _last_uses(module: GraphModule) -> dict[Node, list[Node]]:
    seen: set[Node] = set()
    result: dict[Node, list[Node]] = {}
    for node in reversed(module.graph.nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                result.setdefault(node, []).append(source)
    return result


def _run_node(
    node: Node, fakes: Fakes, environment: Mapping[Node, Any], literals: Mapping[tuple[int | str, ...], int]
) -> Any:
    if node.op == "get_attr":
        return fakes.attribute(str(node.target))
    args, kwargs = fakes.arguments(*map_arg((node.args, node.kwargs), environment.__getitem__))
    for path, size in literals.items():
        args, kwargs = _replaced(args, kwargs, path, size)
    target: Any = fakes.submodule(str(node.target)) if node.op == "call_module" else node.target
    try:
        return target(*args, **kwargs)
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ShapeMismatchError(node, said[0][:300]) from error


def _replaced(args: Any, kwargs: Any, path: tuple[int | str, ...], size: int) -> tuple[Any, Any]:
    if isinstance(path[0], str):
        return args, {**kwargs, path[0]: with_literal(kwargs[path[0]], path[1:], size)}
    return with_literal(args, path, size), kwargs


def with_literal(value: Any, path: tuple[int | str, ...], size: int) -> Any:
    """A copy of nested arguments with one int replaced."""
    if not path:
        return size
    items = list(value)
    items[path[0]] = with_literal(items[path[0]], path[1:], size)  # type: ignore[index]
    return type(value)(items) if isinstance(value, tuple) else items
