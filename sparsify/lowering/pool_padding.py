"""Keeps what dense convolutions pool in ONNX Runtime's blocks of channels.

ONNX Runtime computes dense convolutions on blocks of 16 channels (8 with AVX2) and pads the last block, but
it pools blocks only where none is padded: a stem of 120 channels is converted to plain NCHW at its full size
and pooled there. With zeros for channels it is pooled in blocks, and what is converted is a quarter of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from sparsify.lowering.candidate import Array, Candidate
from sparsify.lowering.emission import NewConstants
from sparsify.lowering.graph import STANDARD, Graph, Shape, attribute
from sparsify.runtime.library import kernels

_POOLS = ("MaxPool", "AveragePool")
_CHANNEL_BY_CHANNEL = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh")
_SLICE_READS_INPUTS = 10  # opset from which starts and ends of Slice are inputs
_ALIGNED = 4  # input channels that ONNX Runtime takes in blocks, or fewer than a block as they are


@dataclass(frozen=True)
class PaddedPool:
    """A dense convolution and what follows it, up to a pooling that sparse operators read.

    Attributes:
        nodes: Their indices: convolution, channel-wise operators, pooling.
        channels: Output channels that the file has.
        padded: The same up to a whole block.
    """

    nodes: tuple[int, ...]
    channels: int
    padded: int

    @property
    def note(self) -> str:
        """What happens to the convolution, for its report."""
        return f"computed with {self.padded} channels, so that ONNX Runtime pools whole blocks"


def block_of_channels() -> int:
    """Channels of a block of ONNX Runtime's on this CPU; 1 where it makes none."""
    able = kernels()
    return 16 if able.get("avx512") else 8 if able.get("avx2") else 1


def find_padded_pools(
    graph: Graph, chosen: Mapping[int, tuple[Candidate, str]], block: int
) -> tuple[PaddedPool, ...]:
    """Poolings whose channels fill no whole number of blocks.

    Args:
        graph: Index of the source model.
        chosen: What becomes sparse: fused candidates and layouts by index.
        block: Channels of a block; 1 finds none.
    """
    if block == 1 or graph.opset < _SLICE_READS_INPUTS:
        return ()
    read = {name for candidate, _ in chosen.values() for name in (candidate.x, candidate.residual)}
    consumed = {index for candidate, _ in chosen.values() for index in candidate.consumed}
    found = []
    for index, node in enumerate(graph.nodes):
        if node.domain in STANDARD and node.op_type in _POOLS and node.output[0] in read:
            pool = _padded(graph, index, consumed, block)
            if pool is not None:
                found.append(pool)
    return tuple(found)


def _padded(graph: Graph, pool: int, consumed: set[int], block: int) -> PaddedPool | None:
    if len([name for name in graph.nodes[pool].output if name]) != 1:
        return None
    nodes = [pool]
    while True:
        name = graph.nodes[nodes[0]].input[0]
        if name not in graph.producer or graph.only_consumer(name) is None:
            return None
        nodes.insert(0, graph.producer[name])
        node = graph.nodes[nodes[0]]
        if node.domain not in STANDARD or nodes[0] in consumed:
            return None
        if node.op_type == "Conv":
            break
        if node.op_type not in _CHANNEL_BY_CHANNEL and _batch_norm(graph, node) is None:
            return None
    weight = _conv_weight(graph, node, block)
    if weight is None or weight.shape[0] % block == 0:
        return None
    channels = int(weight.shape[0])
    return PaddedPool(tuple(nodes), channels, -(-channels // block) * block)


def _conv_weight(graph: Graph, node: onnx.NodeProto, block: int) -> Array | None:
    """The weight of a convolution that ONNX Runtime computes in blocks."""
    weight = graph.constant(node.input[1])
    if not isinstance(weight, np.ndarray) or weight.ndim != 4 or weight.dtype != np.float32:
        return None
    if len(node.input) > 2 and node.input[2] and not isinstance(graph.constant(node.input[2]), np.ndarray):
        return None
    inputs = weight.shape[1]
    plain = attribute(node, "group", 1) == 1 and (inputs < block or inputs % _ALIGNED == 0)
    return weight if plain else None


def _batch_norm(graph: Graph, node: onnx.NodeProto) -> list[Array] | None:
    """Scale, shift, mean and variance of a normalisation by constants."""
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0) or len(node.output) != 1:
        return None
    values = [graph.constant(name) for name in node.input[1:5]]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    return arrays if len(arrays) == 4 else None


class PoolPadding:
    """Makes the nodes in which found poolings are padded.

    Attributes:
        infos: Types and shapes of the padded values.
    """

    def __init__(self, graph: Graph, pools: Sequence[PaddedPool], constants: NewConstants) -> None:
        self.infos: list[onnx.ValueInfoProto] = []
        self._graph = graph
        self._constants = constants
        self._at = {index: pool for pool in pools for index in pool.nodes}
        self._renamed: dict[str, str] = {}

    @property
    def indices(self) -> set[int]:
        """Indices of all nodes that are made anew."""
        return set(self._at)

    def nodes(self, index: int) -> list[onnx.NodeProto]:
        """The nodes that stand for one of a found pooling's, which are asked for in the file's order."""
        pool, source = self._at[index], self._graph.nodes[index]
        node = onnx.NodeProto()
        node.CopyFrom(source)
        output = source.output[0]
        padded = self._constants.free(f"{output}/padded")
        node.output[0] = self._renamed[output] = padded
        node.input[0] = self._renamed.get(source.input[0], source.input[0])
        more = pool.padded - pool.channels
        if index == pool.nodes[0]:
            self._pad_input(node, 1, more, 0.0)
            if len(node.input) > 2 and node.input[2]:
                self._pad_input(node, 2, more, 0.0)
        elif source.op_type == "BatchNormalization":
            for place, value in enumerate((1.0, 0.0, 0.0, 1.0), start=1):
                self._pad_input(node, place, more, value)
        self._note(padded, output, pool.padded)
        return [node, self._cut(pool, padded, output)] if index == pool.nodes[-1] else [node]

    def _pad_input(self, node: onnx.NodeProto, place: int, more: int, value: float) -> None:
        name = node.input[place]
        array = self._graph.constant(name)
        assert isinstance(array, np.ndarray)
        widths = [(0, more)] + [(0, 0)] * (array.ndim - 1)
        padded = np.pad(array, widths, constant_values=value)
        node.input[place] = self._constants.add(f"{name}.padded", padded)

    def _cut(self, pool: PaddedPool, padded: str, output: str) -> onnx.NodeProto:
        """What leaves the channels that the file has."""
        numbers = [
            self._constants.add(f"{output}/{what}", np.array([number], dtype=np.int64))
            for what, number in (("starts", 0), ("ends", pool.channels), ("axes", 1))
        ]
        return helper.make_node("Slice", [padded, *numbers], [output], name=f"{output}/Slice")

    def _note(self, padded: str, source: str, channels: int) -> None:
        shape: Shape | None = self._graph.shapes.get(source)
        if shape is not None and len(shape) == 4:
            element = self._graph.types.get(source, TensorProto.FLOAT)
            self.infos.append(
                helper.make_tensor_value_info(padded, element, (shape[0], channels, *shape[2:]))
            )
