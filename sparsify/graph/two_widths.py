"""Checks the equations: runs the graph on fake tensors at other widths.

Every width that may grow gets a size of its own, so that a coupling that was missed cannot hide behind two
widths that grow alike. A node that fails, or computes another shape than foretold, pins the widths around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_unflatten

from sparsify.errors import Refusal
from sparsify.graph.dimensions import Dimensions, Dims, flat_sizes, module_path, operator_name
from sparsify.graph.measured import looks_at_values
from sparsify.graph.poly import Poly
from sparsify.graph.traced import Traced
from sparsify.graph.verify import Fakes, Metas, ShapeMismatchError, device_of, run_fake

_ATTEMPTS = 12


def example_inputs(traced: Traced) -> list[tuple[Node, Any]]:
    """Placeholders of a traced model with the example that each gets."""
    places = traced.module.graph.find_nodes(op="placeholder")
    spec = traced.module.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
    _, order = tree_unflatten(list(range(spec.num_leaves)), spec)
    kwargs = {name: traced.kwargs[name] for name in order if name in traced.kwargs}
    leaves = tree_leaves((traced.args, kwargs))
    return list(zip(places, leaves, strict=True))


def check_two_widths(
    dimensions: Dimensions,
    shapes: Mapping[str, Dims],
    inputs: Sequence[tuple[Node, Any]],
    runtime: Mapping[str, int],
) -> None:
    """Pins every width that does not follow the equations, with the operator that showed it.

    Args:
        dimensions: Settled equations; pins and refusals are added.
        shapes: Shape of every parameter and buffer by path.
        inputs: Placeholders and example inputs.
        runtime: Values of run-time symbols on these inputs.
    """
    for attempt in range(_ATTEMPTS):
        failure = _first_failure(dimensions, shapes, inputs, runtime)
        if failure is None:
            return
        node, reason = failure
        values = [dimensions.values.get(one) for one in (node, *node.all_input_nodes)]
        sizes = list(flat_sizes(values))
        if attempt == _ATTEMPTS - 1 or not any(dimensions.widths.free(size) for size in sizes):
            sizes = [size for shape in shapes.values() for size in shape]
        reason, path = f"at another width, {operator_name(node)} {reason}", module_path(node)
        refusal = Refusal(path, "two-widths", f"{reason}; what it touches keeps its width")
        dimensions.refusals.append(refusal)
        for size in sizes:
            dimensions.widths.pin(size, f"{reason} ({path or 'top level'})")


class _UnexpectedShapeError(Exception):
    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


def _first_failure(
    dimensions: Dimensions,
    shapes: Mapping[str, Dims],
    inputs: Sequence[tuple[Node, Any]],
    runtime: Mapping[str, int],
) -> tuple[Node, str] | None:
    widths = dimensions.widths
    free = dict.fromkeys(name for shape in shapes.values() for size in shape for name in widths.free(size))
    if not free:
        return None
    sizes = dict(runtime) | {name: 2 * widths.values[name] + index for index, name in enumerate(free)}

    def evaluate(size: Poly) -> int | None:
        resolved = widths.resolve(size)
        return resolved.evaluate(sizes) if resolved.symbols <= sizes.keys() else None

    def watch(node: Node, value: Any) -> None:
        expected = [evaluate(size) for size in flat_sizes(dimensions.values.get(node))]
        computed = list(flat_sizes(dimensions.meta(value)))
        if len(expected) == len(computed):
            for size, found in zip(expected, computed, strict=True):
                if size is not None and found != size:
                    raise _UnexpectedShapeError(node, f"computes a size {found} where {size} was foretold")

    widened = {path: [evaluate(size) or 0 for size in shape] for path, shape in shapes.items()}
    literals: dict[Node, dict[tuple[int | str, ...], int]] = {}
    for node, path, size in dimensions.literals:
        if widths.resolve(size).constant is None:
            value = evaluate(size)
            if value is not None:
                literals.setdefault(node, {})[path] = value
    given = [example for _, example in inputs]
    known = {node: value for node, value in dimensions.measured.items() if looks_at_values(node)}
    try:
        run_fake(Metas(dimensions.module, widened), given, literals, watch, known)
        return None
    except (ShapeMismatchError, _UnexpectedShapeError):
        pass  # the meta device knows fewer operators: fake tensors have the last word
    try:
        run_fake(
            Fakes(dimensions.module, FakeTensorMode(), widened, device_of(given)),
            given,
            literals,
            watch,
            dimensions.measured,
        )
    except ShapeMismatchError as failure:
        return failure.node, "cannot run"
    except _UnexpectedShapeError as failure:
        return failure.node, str(failure)
    return None
