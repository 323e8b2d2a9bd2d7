"""Attention between projections, in the spellings that exporters use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.lowering.graphs import Shape, model, node, sparse_array

Constants = dict[str, np.ndarray]


@dataclass(frozen=True)
class Spelling:
    """One way to write attention.

    Attributes:
        heads: Their number.
        size: Of a head.
        length: Size or symbol of the sequence.
        keys: "two" Transposes, "one", or "flat": through three dimensions.
        scale: "product", "divided", "both" (half of it each on q and k), "query",
            "sizes" (worked out from a shape) or "none".
        guard: Whether NaN becomes 0.
        mask: "none", "zeros", "expanded" (zeros over a batch), "causal", "lowest" (causal, the smallest
            float), "where", "where_not" (causal, scores are replaced), "given" (an input), "constant",
            "trilu" (causal, made in the graph).
        opset: Of the standard operators.
        sizes_in_graph: Whether the targets of Reshape are put together from Shape.
        outputs: Inner values that are outputs too.
        constants: What replaces constants of the same name.
    """

    heads: int = 2
    size: int = 8
    length: int | str = 12
    keys: str = "two"
    scale: str = "product"
    guard: bool = False
    mask: str = "none"
    opset: int = 20
    sizes_in_graph: bool = False
    outputs: tuple[str, ...] = ()
    constants: Constants = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.heads * self.size

    @property
    def number(self) -> float:
        """The whole scale."""
        return 1.0 if self.scale == "none" else self.size**-0.5

    def build(self) -> onnx.ModelProto:
        """x [batch, length, width] through three projections, attention and a fourth, to y."""
        c: Constants = {f"w{i}": sparse_array(self.width, self.width, seed=ord(i)) for i in "qkvo"}
        nodes = [node("MatMul", ["x", f"w{i}"], i) for i in "qkv"]
        nodes += self._views(c)
        nodes += self._keys(c)
        nodes += self._scores(c)
        nodes.append(node("Softmax", [nodes[-1].output[0]], "p", axis=-1))
        if self.guard:
            c["nought"] = np.float32(0.0).reshape(())
            nodes += [node("IsNaN", ["p"], "isnan"), node("Where", ["isnan", "nought", "p"], "weights")]
        nodes += [
            node("MatMul", ["weights" if self.guard else "p", "v4"], "mixed"),
            node("Transpose", ["mixed"], "turned", perm=[0, 2, 1, 3]),
            node("Reshape", ["turned", "joined_shape"], "joined"),
            node("MatMul", ["joined", "wo"], "y"),
        ]
        shape: Shape = ["batch", self.length, self.width]
        inputs: dict[str, Shape] = {"x": shape}
        if self.mask == "given":
            inputs["mask"] = ["batch", 1, self.length, self.length]
        view: Shape = ["batch", self.heads, self.length, self.size]
        scores: Shape = ["batch", self.heads, self.length, self.length]
        known = {"y": shape} | {name: view if name == "k4" else scores for name in self.outputs}
        return model(nodes, inputs, known, c | self.constants, opset=self.opset)

    def _views(self, c: Constants) -> list[onnx.NodeProto]:
        length = self.length if isinstance(self.length, int) else 0
        nodes = []
        if self.sizes_in_graph:
            c |= {"two": np.array([2]), "nil": np.array([0]), "hd": np.array([self.heads, self.size])}
            c["flat"] = np.array([-1])
            nodes = [
                node("Shape", ["q"], "sizes"),
                node("Slice", ["sizes", "nil", "two"], "bl"),
                node("Concat", ["bl", "hd"], "split_shape", axis=0),
                node("Concat", ["bl", "flat"], "joined_shape", axis=0),
            ]
        else:
            first = -1 if length else 0
            c["split_shape"] = np.array([first, length, self.heads, self.size])
            c["joined_shape"] = np.array([first, length, self.width])
        for i in "qkv":
            nodes.append(node("Reshape", [i, "split_shape"], f"{i}s"))
            if i != "k" or self.keys != "one":
                nodes.append(node("Transpose", [f"{i}s"], f"{i}4", perm=[0, 2, 1, 3]))
        return nodes

    def _keys(self, c: Constants) -> list[onnx.NodeProto]:
        if self.keys == "one":
            return [node("Transpose", ["ks"], "kt", perm=[0, 2, 3, 1])]
        if self.keys == "two":
            return [node("Transpose", ["k4"], "kt", perm=[0, 1, 3, 2])]
        c |= {"last": np.array([-1]), "second": np.array([-2]), "end": np.array([2**63 - 1])}
        c["least"] = np.array([-(2**63)])
        return [
            node("Shape", ["k4"], "k_sizes"),
            node("Slice", ["k_sizes", "last", "end"], "k_size"),
            node("Slice", ["k_sizes", "second", "last"], "k_length"),
            node("Slice", ["k_sizes", "least", "second"], "k_rest"),
            node("Concat", ["last", "k_length", "k_size"], "k_flat", axis=0),
            node("Concat", ["k_rest", "k_size", "k_length"], "k_whole", axis=0),
            node("Reshape", ["k4", "k_flat"], "k3"),
            node("Transpose", ["k3"], "k3t", perm=[0, 2, 1]),
            node("Reshape", ["k3t", "k_whole"], "kt"),
        ]

    def _scores(self, c: Constants) -> list[onnx.NodeProto]:
        q, k, nodes = "q4", "kt", []
        c["scale"] = np.array(self.size**-0.5, np.float32)
        if self.scale == "both":
            c["scale"] = np.array(self.size**-0.25, np.float32)
            nodes = [node("Mul", ["q4", "scale"], "q_scaled"), node("Mul", ["scale", "kt"], "k_scaled")]
            q, k = "q_scaled", "k_scaled"
        elif self.scale == "sizes":
            nodes, q = (
                [*self._scale_of_sizes(c), node("Mul", ["q4", "scale_of_sizes"], "q_scaled")],
                "q_scaled",
            )
        elif self.scale == "query":
            nodes, q = [node("Mul", ["q4", "scale"], "q_scaled")], "q_scaled"
        nodes.append(node("MatMul", [q, k], "product"))
        scores = "product"
        if self.scale in ("product", "divided"):
            scores = "scaled"
            if self.scale == "divided":
                c["scale"] = np.array(self.size**0.5, np.float32)
            op = "Mul" if self.scale == "product" else "Div"
            nodes.append(node(op, ["product", "scale"], scores))
        return nodes + self._mask(c, scores)

    def _scale_of_sizes(self, c: Constants) -> list[onnx.NodeProto]:
        c |= {"one": np.ones((), np.float32), "last_axis": np.array([-1]), "behind": np.array([2**63 - 1])}
        return [
            node("Shape", ["q4"], "q_sizes"),
            node("Slice", ["q_sizes", "last_axis", "behind"], "q_size"),
            node("Cast", ["q_size"], "q_size_float", to=1),
            node("Sqrt", ["q_size_float"], "root"),
            node("Div", ["one", "root"], "scale_of_sizes"),
        ]

    def _mask(self, c: Constants, scores: str) -> list[onnx.NodeProto]:
        length = self.length if isinstance(self.length, int) else 1
        lower = np.tril(np.ones((1, 1, length, length), bool))
        low = np.float32(np.finfo(np.float32).min if self.mask == "lowest" else -np.inf)
        c |= {"low": low.reshape(()), "zero": np.float32(0).reshape(())}
        if self.mask == "none":
            return []
        if self.mask in ("where", "where_not"):
            c["seen"] = lower if self.mask == "where" else ~lower
            operands = [scores, "low"] if self.mask == "where" else ["low", scores]
            return [node("Where", ["seen", *operands], "masked")]
        if self.mask == "expanded":
            c |= {
                "all": np.ones((1, 1, length, 1), bool),
                "tail": np.array([1, length, length]),
            }
            return [
                node("Shape", ["x"], "x_sizes", start=0, end=1),
                node("Concat", ["x_sizes", "tail"], "mask_shape", axis=0),
                node("Expand", ["all", "mask_shape"], "expanded"),
                node("Where", ["expanded", "zero", "low"], "mask"),
                node("Add", [scores, "mask"], "masked"),
            ]
        if self.mask == "trilu":
            c |= {
                "yes": np.ones((1, 1), bool),
                "square": np.array([length, length]),
                "no": np.zeros((), bool),
            }
            return [
                node("Expand", ["yes", "square"], "all_seen"),
                node("Trilu", ["all_seen"], "seen", upper=0),
                node("Equal", ["seen", "no"], "unseen"),
                node("Where", ["unseen", "low", "zero"], "mask"),
                node("Add", [scores, "mask"], "masked"),
            ]
        if self.mask in ("causal", "lowest"):
            c["mask"] = np.where(lower, np.float32(0), low)
        elif self.mask == "zeros":
            c["mask"] = np.zeros((1, 1, 1, length), np.float32)
        elif self.mask == "constant":
            c["mask"] = np.linspace(0, 1, length, dtype=np.float32).reshape(1, 1, 1, length)
        return [node("Add", ["mask", scores], "masked")]


PLAIN = Spelling()


def changed(built: onnx.ModelProto, name: str, **attributes: Any) -> onnx.ModelProto:
    """The model with other attributes at the node that makes a value."""
    copy = onnx.ModelProto()
    copy.CopyFrom(built)
    for item in copy.graph.node:
        if name in item.output:
            kept = [entry for entry in item.attribute if entry.name not in attributes]
            made = [helper.make_attribute(key, value) for key, value in attributes.items()]
            del item.attribute[:]
            item.attribute.extend([*kept, *made])
    return copy


def half(spelling: Spelling) -> onnx.ModelProto:
    """The same in float16."""
    built = spelling.build()
    for tensor in built.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    for value_info in [*built.graph.input, *built.graph.output]:
        value_info.type.tensor_type.elem_type = TensorProto.FLOAT16
    return built


def with_outputs(spelling: Spelling, *names: str) -> onnx.ModelProto:
    """The same with inner values among its outputs."""
    return replace(spelling, outputs=names).build()
