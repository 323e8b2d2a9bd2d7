"""Chains of sparse convolutions as one node: what they compute, refuse, and stand for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from sparsify.errors import RuntimeLibraryError, UnsupportedModelError, UserError
from sparsify.runtime import Session, layouts
from sparsify.runtime.conv_chain import OPERATOR, join, output_shape, separate
from sparsify.runtime.node_profile import annotate, sparse_weights
from sparsify.runtime.reference import ChainStep, sparse_conv_chain
from sparsify.runtime.roofline import Roofline
from sparsify.runtime.zero_filled import zero_filled
from tests.runtime.graphs import DOMAIN, masked, model, values

INFERS_SHAPES = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 24)
TOLERANCE = 2e-5  # of values of about one, through five convolutions

CONVOLUTIONS = {
    # name: weight, strides, pads, source, residual, activation, layout; x and z are outer maps
    "squeeze": ((4, 8, 1, 1), (1, 1), (0, 0, 0, 0), "x", "", "relu", "csr"),
    "middle": ((4, 4, 3, 3), (2, 2), (1, 1, 1, 1), "squeeze", "", "clip", "blocks-2"),
    "shortcut": ((8, 8, 1, 1), (2, 2), (0, 0, 0, 0), "x", "", "none", "csr"),
    "expand": ((8, 4, 1, 1), (1, 1), (0, 0, 0, 0), "middle", "shortcut", "relu", "csr"),
    "last": ((8, 8, 3, 3), (1, 1), (1, 1, 1, 1), "expand", "z", "gelu", "blocks-4"),
}


def block() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[ChainStep]]:
    """A strided bottleneck block with everything that fuses: nodes, constants, and what they mean."""
    nodes, constants, steps = [], {}, []
    number = {"x": 0, "z": 1} | {name: i + 2 for i, name in enumerate(CONVOLUTIONS)}
    for seed, (name, row) in enumerate(CONVOLUTIONS.items()):
        shape, strides, pads, source, residual, activation, layout = row
        weight = 0.5 * masked(shape, 0.5, seed)
        packed = layouts.pack_conv(weight, strides=strides, pads=pads, layout=layout)
        bias = None if name == "shortcut" else values((shape[0],), seed)
        constants |= {f"{name}.{i}": tensor for i, tensor in enumerate(packed.tensors)}
        if bias is not None:
            constants[f"{name}.bias"] = bias
        clip = {"clip_min": -0.5, "clip_max": 0.75} if activation == "clip" else {}
        inputs = [source, "" if bias is None else f"{name}.bias", residual]
        inputs += [f"{name}.{i}" for i in range(len(packed.tensors))]
        attributes = packed.attributes | clip | {"activation": activation}
        output = "y" if name == "last" else name
        nodes.append(helper.make_node("SparseConv", inputs, [output], name=name, domain=DOMAIN, **attributes))
        bounds = (-0.5, 0.75) if clip else (0.0, 0.0)
        steps.append(ChainStep(packed, number[source], number.get(residual, -1), bias, activation, bounds))
    return nodes, constants, steps


def built(node: onnx.NodeProto | None = None, **changed: object) -> onnx.ModelProto:
    """The block as one chain; `changed` replaces attributes."""
    nodes, constants, _ = block()
    chain = node or join(nodes)
    for name, value in changed.items():
        kept = [item for item in chain.attribute if item.name != name]
        del chain.attribute[:]
        chain.attribute.extend([*kept, helper.make_attribute(name, value)])
    inputs = {"x": ["n", 8, "h", "w"], "z": ["n", 8, "oh", "ow"]}
    return model([chain], constants, inputs)


def feeds(batch: int, height: int = 9, width: int = 12) -> dict[str, np.ndarray]:
    out = (batch, 8, (height + 1) // 2, (width + 1) // 2)
    return {"x": values((batch, 8, height, width), 5), "z": values(out, 6)}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_chain_computes_what_the_reference_says(threads: int):
    session = Session(built().SerializeToString(), threads=threads)
    steps = block()[2]
    for batch in (1, 2, 5, 0, 3):
        for size in ((9, 12), (6, 5)):
            given = feeds(batch, *size)
            want = sparse_conv_chain([given["x"], given["z"]], steps)
            got = session.run(given)["y"]
            assert got.shape == want.shape
            assert np.abs(got - want).max(initial=0) <= TOLERANCE * np.abs(want).max(initial=1)


def test_a_wrong_bias_would_be_seen():
    steps = block()[2]
    given = feeds(2)
    want = sparse_conv_chain([given["x"], given["z"]], steps)
    moved = ChainStep(
        steps[1].packed, steps[1].source, bias=steps[1].bias + 0.01, activation="clip", bounds=(-0.5, 0.75)
    )
    other = sparse_conv_chain([given["x"], given["z"]], [steps[0], moved, *steps[2:]])
    assert np.abs(other - want).max() > 10 * TOLERANCE * np.abs(want).max()


def test_separate_undoes_join():
    nodes = block()[0]
    back = separate(join(nodes))
    assert [node.name for node in back] == list(CONVOLUTIONS)
    for node, other in zip(nodes, back, strict=True):
        assert list(node.input[3:]) == list(other.input[3:]) and node.input[1] == other.input[1]
        first, second = (
            {item.name: helper.get_attribute_value(item) for item in each.attribute} for each in (node, other)
        )
        assert first == second
    assert back[3].input[2] == back[2].output[0] and back[-1].output[0] == "y"


def test_the_zero_filled_twin_computes_the_same():
    twin = zero_filled(built())
    assert {node.domain for node in twin.graph.node} == {""}
    given = feeds(2)
    chain = Session(built().SerializeToString()).run(given)["y"]
    assert np.abs(Session(twin.SerializeToString()).run(given)["y"] - chain).max() <= TOLERANCE * 10


@pytest.mark.skipif(not INFERS_SHAPES, reason="this ONNX Runtime infers no shapes of custom operators")
def test_shapes_are_inferred_with_symbols():
    session = Session(built().SerializeToString())
    batch, channels, height, width = session.raw.get_outputs()[0].shape
    assert (batch, channels) == ("n", 8)
    assert isinstance(height, str) and "h" in height and "w" in width
    fixed = built()
    for value, shape in zip(fixed.graph.input, ((3, 8, 9, 12), (3, 8, 5, 6)), strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    assert Session(fixed.SerializeToString()).raw.get_outputs()[0].shape == [3, 8, 5, 6]


def test_a_profile_shows_one_node_with_the_flops_of_all():
    chain = built()
    name = chain.graph.node[0].name
    weights = sparse_weights(chain)
    rows = [
        {
            "node": name,
            "op": OPERATOR,
            "calls": 1,
            "us": 100.0,
            "share": 1.0,
            "inputs": [[2, 8, 9, 12], [2, 8, 5, 6]],
            "outputs": [[2, 8, 5, 6]],
        }
    ]
    steps = block()[0]
    dense = [
        {"shape": list(row[0]), "columns": columns, "us": 7.0}
        for row, columns in zip(CONVOLUTIONS.values(), (216, 60, 60, 60, 60), strict=True)
    ]
    ceiling = Roofline(gflops=100.0, gbytes=10.0, threads=1, how="made up")
    (row,) = annotate(rows, weights, ceiling, dense)
    nonzeros = [np.count_nonzero(layouts.unpack(step.packed)) for step in block()[2]]
    flops = sum(2 * count * columns for count, columns in zip(nonzeros, (216, 60, 60, 60, 60), strict=True))
    assert row["gflops"] == pytest.approx(1e-9 * flops / 1e-4)
    assert row["shape"] is None and row["decision"] == "csr, blocks-2, blocks-4"
    assert row["dense_us"] == pytest.approx(5 * 7.0)
    assert output_shape(steps[1], (2, 4, 9, 12)) == (2, 4, 5, 6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sources": [0, 2, 0, 9, 5]}, r"step 3 \('expand'\) reads value 9, but there are 5 before it"),
        ({"residuals": [-1, -1, -1, 4, -7]}, r"step 4 \('last'\) reads value -7"),
        ({"residuals": [-1, -1, -1, 4, 4]}, "no step reads outer map 1"),
        ({"sources": [0, 0, 0, 3, 5]}, r"step 1 .*for 4 channels, but it has 8"),
        ({"in_channels": [8, 4, 8, 4, 9]}, r"step 4 .*last"),
        ({"sources": [0, 2, 0]}, "'sources' must be a list of 5 integers"),
        ({"steps": "a\nb"}, "'steps' has 2 lines instead of one for each of 5 steps"),
        ({"layouts": "csr\nblocks-2\ncsr\ncsr\nspiral"}, r"step 4 \('last'\): .*spiral"),
        ({"activations": "relu\nrelu\nnone\nrelu\nsinus"}, "unknown activation 'sinus'"),
        ({"clip_min": [0.0, 2.0, 0.0, 0.0, 0.0]}, r"step 1 \('middle'\): clip_min must not be above"),
        ({"tensors": [4, 4, 4, 4, 5]}, r"step 4 \('last'\): a packed weight is missing"),
        ({"tensors": [4, 4, 4, 4, 3]}, r"step 4 \('last'\)"),
        ({"biases": [1, 1, 0, 1, 0]}, r"step 4 \('last'\)|its steps take"),
        ({"count": 0}, "'count' must be between 1 and 4096, not 0"),
        ({"count": 4}, "must be a list of 4 integers"),
        ({"maps": 3}, r"step 0 \('squeeze'\): its bias must be 4 floats"),
        ({"strides": [1, 1, 2, 2, 0, 2, 1, 1, 1, 1]}, "stride|between 1"),
    ],
)
def test_bad_attributes_are_refused_with_the_step(changed, said):
    graph = built(**changed)
    with pytest.raises((RuntimeLibraryError, UserError), match=said):
        Session(graph.SerializeToString())


def test_corrupt_weights_and_biases_are_refused():
    for name, value, said in (
        ("expand.2", np.zeros(3, np.uint16), r"step 3 \('expand'\)"),
        ("last.bias", np.zeros(7, np.float32), r"step 4 \('last'\): its bias must be 8 floats"),
        ("last.bias", np.zeros(8, np.int32), r"step 4 \('last'\): its bias must be 8 floats"),
    ):
        graph = built()
        kept = [tensor for tensor in graph.graph.initializer if tensor.name != name]
        del graph.graph.initializer[:]
        graph.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])
        with pytest.raises((RuntimeLibraryError, UserError), match=said):
            Session(graph.SerializeToString())


def test_maps_that_do_not_fit_are_refused_with_the_node():
    session = onnxruntime_session(built())
    good = feeds(2)
    name = built().graph.node[0].name
    for given, said in (
        (good | {"z": good["z"][:1]}, r"map 1 has shape \[1, 8, 5, 6\] instead of floats \[2, 8, H, W\]"),
        (good | {"x": values((2, 7, 9, 12))}, r"map 0 has shape \[2, 7, 9, 12\]"),
        (good | {"z": values((2, 8, 4, 6))}, r"step 4 \('last'\): its residual is of size 4x6"),
    ):
        with pytest.raises(Exception, match=said) as raised:
            session.run(None, given)
        assert name in str(raised.value)


def onnxruntime_session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Without declared sizes, so that nothing but the operator checks the maps."""
    for value in graph.graph.input:
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [None] * 4))
    return Session(graph.SerializeToString()).raw


def test_a_damaged_chain_has_no_twin():
    with pytest.raises(UnsupportedModelError, match="do not describe a chain"):
        zero_filled(built(biases=[1]))
