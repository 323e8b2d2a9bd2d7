"""From an exported program to one flat graph: parameters as get_attr, nested regions inlined."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node

from sparsify.errors import UnsupportedModelError
from sparsify.graph.signature import Signature

aten = torch.ops.aten
_RESERVED = frozenset(dir(GraphModule(nn.Module(), Graph())))


@dataclass
class Lifted:
    """A flat graph and the tensors it reads.

    Attributes:
        graph: Placeholders are user inputs only; tensors are read by get_attr.
        root: Owner of region bodies while they are inlined.
        tensors: Path to Parameter, buffer or constant; every entry of the state_dict is here.
        persistent: Paths that belong to the state_dict.
        renamed: New path to the user's path, where the user's clashes with an attribute of GraphModule.
    """

    graph: Graph
    root: nn.Module
    tensors: dict[str, Tensor]
    persistent: set[str]
    renamed: dict[str, str]


def safe_path(path: str) -> str:
    """A path that clashes with no attribute of GraphModule."""
    top, dot, rest = path.partition(".")
    return f"{top}_{dot}{rest}" if top in _RESERVED else path


def lift(ep: ExportedProgram) -> Lifted:
    """Turns the inputs of an exported program that are not the user's into get_attr nodes.

    Raises:
        UnsupportedModelError: When the model holds script objects, or changes its inputs or buffers other
        than
            BatchNorm's statistics.
    """
    graph = Graph()
    copied: dict[Node, Node] = {}
    output = graph.graph_copy(ep.graph, copied)
    graph.output(())
    specs = {spec.arg.name: spec for spec in ep.graph_signature.input_specs}
    lifted = Lifted(graph, nn.Module(), {}, set(), {})
    for old in ep.graph.find_nodes(op="placeholder"):
        if specs[old.name].kind != InputKind.USER_INPUT:
            _to_get_attr(copied[old], specs[old.name], lifted)
    for key, tensor in ep.state_dict.items():
        path = _register(key, lifted)
        lifted.tensors[path] = tensor
        lifted.persistent.add(path)
    _read_constants(ep, lifted)
    graph.output_node().args = (_user_outputs(ep, list(output) if output else []),)  # type: ignore[arg-type]
    _take_bodies(ep.graph_module, lifted)
    graph.set_codegen(_codegen(ep))
    return lifted


def _register(key: str, lifted: Lifted) -> str:
    if any(character in key for character in "\"'\\\n\r"):
        raise UnsupportedModelError(
            f"a parameter or buffer has the name {key!r}; names must not hold quotes or newlines"
        )
    path = safe_path(key)
    if path != key:
        lifted.renamed[path] = key
    return path


def _to_get_attr(node: Node, spec: Any, lifted: Lifted) -> None:
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        raise UnsupportedModelError(
            f"the model holds '{spec.target or spec.arg.name}', a "
            f"{spec.kind.name.lower().replace('_', ' ')}, "
            "which has no place in a graph of tensors; replace it by tensors or plain Python values"
        )
    if not node.users:
        node.graph.erase_node(node)
        return
    with node.graph.inserting_before(
        next(n for n in node.graph.nodes if n.op not in ("placeholder", "get_attr"))
    ):
        read = node.graph.create_node("get_attr", _register(spec.target, lifted))
    read.meta = dict(node.meta)
    node.replace_all_uses_with(read)
    node.graph.erase_node(node)


def _read_constants(ep: ExportedProgram, lifted: Lifted) -> None:
    for spec in ep.graph_signature.input_specs:
        if spec.target is None or spec.target in ep.state_dict:
            continue
        value = ep.constants.get(spec.target)
        if isinstance(value, Tensor):
            lifted.tensors[_register(spec.target, lifted)] = value


def _user_outputs(ep: ExportedProgram, outputs: list[Any]) -> tuple[Any, ...]:
    """Outputs without the mutations that a functional program returns beside them."""
    kept = []
    for spec, value in zip(ep.graph_signature.output_specs, outputs, strict=True):
        if spec.kind == OutputKind.USER_OUTPUT:
            kept.append(value)
        elif spec.kind != OutputKind.BUFFER_MUTATION or not _is_statistic(spec.target):
            raise UnsupportedModelError(
                f"the model changes '{spec.target}' when it is called ({spec.kind.name.lower()}); "
                "only BatchNorm statistics may change: return the value instead"
            )
    return tuple(kept)


def _is_statistic(path: str | None) -> bool:
    return (path or "").rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def is_counter(path: str) -> bool:
    """Whether a buffer counts BatchNorm's batches."""
    return path.rpartition(".")[2] == "num_batches_tracked"


def _codegen(ep: ExportedProgram) -> Signature:
    in_spec, out_spec = ep.call_spec.in_spec, ep.call_spec.out_spec
    signature = ep.module_call_graph[0].signature if ep.module_call_graph else None
    names = list(signature.forward_arg_names or []) if signature is not None else []
    args, kwargs = in_spec.children() if hasattr(in_spec, "children") else in_spec.children_specs
    if len(names) != args.num_children + kwargs.num_children:
        names = [f"arg_{i}" for i in range(args.num_children)] + list(kwargs.context)
    # The names are written into generated code, and an archive may say anything.
    for name in [*names, *(kwargs.context or [])]:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise UnsupportedModelError(
                f"an input of the model has the name {name!r}, which no argument can have"
            )
    return Signature(names, in_spec, out_spec)


def _take_bodies(owner: nn.Module, lifted: Lifted) -> None:
    for node in lifted.graph.nodes:
        if node.op == "get_attr" and "." not in node.target and node.target not in lifted.tensors:
            body = getattr(owner, node.target, None)
            if isinstance(body, GraphModule):
                setattr(lifted.root, node.target, body)


def inline_regions(lifted: Lifted) -> None:
    """Inlines bodies of no_grad and autocast regions; what no_grad cut stays cut, by aten.detach.

    Raises:
        UnsupportedModelError: For enabled autocast regions and for control flow.
    """
    while True:
        region = next(
            (n for n in lifted.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator)), None
        )
        if region is None:
            return
        _inline(region, lifted)


def _inline(region: Node, lifted: Lifted) -> None:
    name = str(region.target)
    if name == "wrap_with_set_grad_enabled":
        enabled, body_read, *inputs = region.args
        cut = not enabled
    elif name == "wrap_with_autocast":
        device, _, enabled, _, body_read, *inputs = region.args
        if enabled and device == _device(inputs):
            raise UnsupportedModelError(
                f"node {region.name}: the model turns autocast on inside its forward; trace it "
                f"without, and use "
                "torch.autocast around the training step"
            )
        cut = False
    else:
        raise UnsupportedModelError(
            f"node {region.name}: {name} is control flow that depends on data; rewrite the branch "
            f"with torch.where"
        )
    assert isinstance(body_read, Node)  # by construction of the operator
    owner = lifted.root
    for part in str(body_read.target).split("."):
        owner = getattr(owner, part)
    carries = cut and any(_has_gradient(n, lifted.tensors) for n in inputs if isinstance(n, Node))
    outputs = _splice(region, owner, list(inputs), carries, lifted.root)
    for user in list(region.users):
        user.replace_all_uses_with(outputs[cast(int, user.args[1])])
        lifted.graph.erase_node(user)
    lifted.graph.erase_node(region)
    if not body_read.users:
        lifted.graph.erase_node(body_read)


def _splice(region: Node, body: Any, inputs: list[Any], detach: bool, root: nn.Module) -> list[Any]:
    graph = region.graph
    values: dict[Node, Any] = {}
    remaining = iter(inputs)
    outputs: list[Any] = []
    with graph.inserting_before(region):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "output":
                outputs = list(node.args[0])
            else:
                values[node] = graph.node_copy(node, lambda n: values[n])
                if node.op == "get_attr":
                    inner = f"{region.name}_{node.target}"
                    setattr(root, inner, getattr(body, str(node.target)))
                    values[node].target = inner
        result = [values.get(o, o) if isinstance(o, Node) else o for o in outputs]
        if detach:
            result = [_detached(graph, o) for o in result]
    return result


def _detached(graph: Graph, value: Any) -> Any:
    if not isinstance(value, Node) or not _is_float(value):
        return value
    node = graph.call_function(aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _device(inputs: list[Any]) -> str | None:
    for node in inputs:
        if isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor):
            return str(node.meta["val"].device.type)
    return None


def _has_gradient(node: Node, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a parameter or a floating-point input lies upstream."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "placeholder" and _is_float(current):
            return True
        if current.op == "get_attr" and isinstance(tensors.get(str(current.target)), nn.Parameter):
            return True
        if current.target != aten.detach.default:
            waiting.extend(current.all_input_nodes)
    return False
