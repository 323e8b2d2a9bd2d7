"""Turns candidates into nodes: the sparse operator, the steps around it, their constants and shapes."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsify.lowering.candidate import Addend, Array, Candidate
from sparsify.lowering.graph import Dim, Graph, Shape
from sparsify.lowering.steps import Step, inverse, shape_after, type_after
from sparsify.runtime.layouts import Packed
from sparsify.runtime.session import DOMAIN

_AXES_ARE_INPUTS = 13  # opset from which Squeeze and Unsqueeze read their axes from an input


class NewConstants:
    """New initializers under names that are free.

    Attributes:
        tensors: What was added, by name.
    """

    def __init__(self, taken: Container[str]) -> None:
        self.tensors: dict[str, onnx.TensorProto] = {}
        self._taken = taken
        self._given: set[str] = set()
        self._names: dict[Hashable, str] = {}

    def free(self, name: str) -> str:
        """A name like the given one that nothing in the file has; it is taken from now on."""
        unique, suffix = name, 0
        while unique in self._taken or unique in self._given:
            suffix += 1
            unique = f"{name}.{suffix}"
        self._given.add(unique)
        return unique

    def add(self, name: str, value: Array, *, key: Hashable = None) -> str:
        """Stores a constant and returns its name; with a `key`, one of the same key is stored once."""
        if key is not None and key in self._names:
            return self._names[key]
        unique = self.free(name)
        self.tensors[unique] = numpy_helper.from_array(np.ascontiguousarray(value), unique)
        if key is not None:
            self._names[key] = unique
        return unique


class Emitter:
    """Makes the nodes of one new model.

    Values that several operators bring into the same form are brought there once, and what one operator
    brought back into the file's form is taken from before that by the next.

    Attributes:
        infos: Types and shapes of values that the source does not have.
        constants: New initializers.
    """

    def __init__(self, graph: Graph, constants: NewConstants) -> None:
        self.infos: list[onnx.ValueInfoProto] = []
        self.constants = constants
        self._graph = graph
        self._forms: dict[tuple[str, tuple[Step, ...]], str] = {}
        self._shapes: dict[str, Shape | None] = {}

    def nodes(self, candidate: Candidate, packed: Packed) -> list[onnx.NodeProto]:
        """The nodes that stand for a candidate, in order."""
        made: list[onnx.NodeProto] = []
        x = self._route(candidate.x, candidate.before, made)
        residual = ""
        if candidate.residual is not None:
            residual = self._route(candidate.residual, inverse(candidate.after) or (), made)
        names = self._results(candidate)
        self._note(names[0], self._operator_shape(candidate, x))
        made.append(self._operator(candidate, packed, x, residual, names[0]))
        for step, source, result in zip(candidate.after, names, names[1:], strict=False):
            made.append(self._step(step, source, result))
            self._note(
                result, shape_after([step], self._shape(source)), type_after([step], TensorProto.FLOAT)
            )
        back = inverse(candidate.after)
        if candidate.addend is not None:
            made.extend(self._addition(candidate.addend, names[-2], names[-1]))
        elif back is not None:
            for position, name in enumerate(reversed(names)):
                self._forms[candidate.output, back[:position]] = name
        return made

    def _results(self, candidate: Candidate) -> list[str]:
        """Names of the operator's result, of that after every step, and of the sum with the addend."""
        count = len(candidate.after) + (candidate.addend is not None)
        inner = [self.constants.free(f"{candidate.output}/sparse") for _ in range(count)]
        return [*inner, candidate.output]

    def _operator(
        self, candidate: Candidate, packed: Packed, x: str, residual: str, output: str
    ) -> onnx.NodeProto:
        add = self.constants.add
        bias = "" if candidate.bias is None else add(f"{candidate.node}.bias", candidate.bias)
        weights = [
            add(
                f"{candidate.weight_key[0]}.{packed.layout}.{i}",
                tensor,
                key=(*_identity(candidate, packed), i),
            )
            for i, tensor in enumerate(packed.tensors)
        ]
        attributes: dict[str, Any] = {**packed.attributes, "activation": candidate.activation}
        if candidate.clip is not None:
            attributes["clip_min"], attributes["clip_max"] = candidate.clip
        inputs = [x, bias, residual, *weights]
        return helper.make_node(
            packed.operator, inputs, [output], name=candidate.node, domain=DOMAIN, **attributes
        )

    def _route(self, value: str, steps: Sequence[Step], made: list[onnx.NodeProto]) -> str:
        """Name of `value` after the steps; nodes that are missing are added to `made`."""
        current = value
        for count, step in enumerate(steps, start=1):
            key = (value, tuple(steps[:count]))
            if key not in self._forms:
                name = self.constants.free(f"{value}/{step.op.lower()}")
                made.append(self._step(step, current, name))
                element = type_after(key[1], self._graph.types.get(value, TensorProto.FLOAT))
                self._note(name, shape_after([step], self._shape(current)), element)
                self._forms[key] = name
            current = self._forms[key]
        return current

    def _step(self, step: Step, source: str, result: str) -> onnx.NodeProto:
        inputs = [source]
        attributes: dict[str, Any] = {}
        if step.op == "Transpose":
            attributes["perm"] = list(step.numbers)
        elif step.op == "Cast":
            attributes["to"] = step.numbers[0]
        elif step.op == "Reshape" or self._graph.opset >= _AXES_ARE_INPUTS:
            numbers = np.array(step.numbers, dtype=np.int64)
            inputs.append(self.constants.add(f"{step.op.lower()}.numbers", numbers, key=step.numbers))
        else:
            attributes["axes"] = list(step.numbers)
        return helper.make_node(step.op, inputs, [result], name=f"{result}/{step.op}", **attributes)

    def _addition(self, addend: Addend, source: str, result: str) -> list[onnx.NodeProto]:
        made = []
        if isinstance(addend.value, str):
            value = addend.value
            if addend.factor != 1.0:
                half = self._graph.types.get(value) == TensorProto.FLOAT16
                number = np.array(addend.factor, dtype=np.float16 if half else np.float32)
                factor = self.constants.add(f"{result}/factor", number)
                value = self.constants.free(f"{result}/scaled")
                made.append(helper.make_node("Mul", [addend.value, factor], [value], name=value))
                self._note(
                    value, self._shape(addend.value), TensorProto.FLOAT16 if half else TensorProto.FLOAT
                )
        else:
            value = self.constants.add(f"{result}/addend", addend.value)
        return [*made, helper.make_node("Add", [source, value], [result], name=f"{result}/Add")]

    def _operator_shape(self, candidate: Candidate, x: str) -> Shape | None:
        back = inverse(candidate.after)
        known = self._graph.shapes.get(candidate.output)
        if known is not None and back is not None:
            return shape_after(back, known)
        shape = self._shape(x)
        outputs = int(candidate.weight.shape[0])
        if shape is None:
            return None
        if candidate.geometry is None:
            return (*shape[:-1], outputs)
        rest: tuple[Dim, ...] = shape[2:] if candidate.weight.shape[2:] == (1, 1) else (None, None)
        return (shape[0], outputs, *rest)

    def _shape(self, name: str) -> Shape | None:
        return self._shapes[name] if name in self._shapes else self._graph.shapes.get(name)

    def _note(self, name: str, shape: Shape | None, element: int = TensorProto.FLOAT) -> None:
        self._shapes[name] = shape
        if shape is not None and name not in self._graph.shapes:
            self.infos.append(helper.make_tensor_value_info(name, element, shape))


def _identity(candidate: Candidate, packed: Packed) -> tuple[Hashable, ...]:
    return (candidate.fingerprint, packed.layout)
