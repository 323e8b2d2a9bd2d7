"""Constant scales and offsets go into weight and bias before anything is decided."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
import torch

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from tests.lowering.graphs import attributes, lowered, model, node, operators, sparse_array

W = sparse_array(24, 40)
ROW = np.linspace(0.5, 2, 40, dtype=np.float32)
NORM = {name: ROW + np.float32(i) for i, name in enumerate("gsmv")}


def after(nodes, constants, *, weight=W, conv=False, shape=None):
    """x · w = h or x * w = h, then the given nodes."""
    first = node("Conv" if conv else "MatMul", ["x", "w"], "h")
    given = ("n", 24, 5, 6) if conv else ("n", 24)
    out = shape or (("n", 40, 5, 6) if conv else ("n", 40))
    stored = {"w": np.ascontiguousarray(weight.T)[:, :, None, None] if conv else weight}
    return model([first, *nodes], {"x": given}, {"y": out}, stored | constants)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(
    "ops",
    [
        ["Mul"],
        ["Div"],
        ["Sub"],
        ["from"],
        ["Add", "Mul", "Add"],
        ["Mul", "BatchNormalization"],
        ["BatchNormalization", "Add", "Div"],
    ],
)
def test_scales_and_offsets(tmp_path, conv, ops):
    vector = ROW.reshape(-1, 1, 1) if conv else ROW
    nodes, value = [], "h"
    for i, op in enumerate(ops):
        result = f"t{i}"
        if op == "BatchNormalization":
            nodes.append(node(op, [value, *NORM], result, epsilon=0.1))
        elif op == "from":
            nodes.append(node("Sub", ["c", value], result))
        else:
            nodes.append(node(op, [value, "c"], result))
        value = result
    nodes.append(node("Relu", [value], "y"))
    used = {name for item in nodes for name in item.input}
    constants = {name: array for name, array in ({"c": vector} | NORM).items() if name in used}
    _, result = lowered(after(nodes, constants, conv=conv), tmp_path)
    assert operators(result) == ["SparseConv" if conv else "SparseLinear"]
    assert attributes(result.graph.node[0])["activation"] == "relu"


def test_channels_that_are_scaled_away_count_as_zeros():
    scale = np.where(np.arange(40) < 10, ROW, 0).astype(np.float32)
    (match,) = match_all(Graph(after([node("Mul", ["h", "c"], "y")], {"c": scale})))
    assert isinstance(match, Candidate)
    assert match.density == pytest.approx(np.count_nonzero(W[:, :10]) / W.size)


@pytest.mark.parametrize(
    ("nodes", "constants", "shape"),
    [
        pytest.param([node("Div", ["c", "h"], "y")], {"c": ROW}, None, id="constant over value"),
        pytest.param([node("Mul", ["h", "c"], "y")], {"c": sparse_array(3, 40)}, (3, 40), id="varies by row"),
        pytest.param([node("Div", ["h", "c"], "y")], {"c": np.zeros(40, np.float32)}, None, id="by zero"),
        pytest.param([node("Mul", ["h", "h"], "y")], {}, None, id="square"),
        pytest.param([node("Mul", ["h", "c"], "y")], {"c": ROW[None, None]}, (1, "n", 40), id="enlarges"),
    ],
)
def test_what_is_no_scale_of_channels_stays(nodes, constants, shape):
    built = after(nodes, constants, shape=shape)
    if shape == (3, 40):
        built.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    (match,) = match_all(Graph(built))
    assert match.output == "h"


def test_norm_over_another_axis_than_the_outputs_stays():
    nodes = [node("MatMul", ["x", "w"], "h"), node("BatchNormalization", ["h", *NORM], "y")]
    norm = {name: array[:7] for name, array in NORM.items()}
    built = model(nodes, {"x": ("n", 7, 24)}, {"y": ("n", 7, 40)}, {"w": W} | norm)
    (match,) = match_all(Graph(built))
    assert match.output == "h"


def test_norm_that_still_learns_stays(tmp_path):
    norm = node("BatchNormalization", ["h", *NORM], "y", training_mode=1)
    norm.output.extend(["mean", "variance"])
    built = after([norm], NORM, conv=True)
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseConv", "BatchNormalization"]


class Block(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
            torch.nn.ReLU6(),
            torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            torch.nn.BatchNorm2d(outputs),
        )
        self.short = torch.nn.Sequential(
            torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        Block(3, 8, 1),
        Block(8, 16, 2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 12, bias=False),
        torch.nn.BatchNorm1d(12),
        torch.nn.SiLU(),
        torch.nn.Linear(12, 4),
    )
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand_like(parameter) < 0.3)
    return net


@pytest.mark.parametrize("mode", ["eval", "unfused", "training"])
def test_exported_resnet(tmp_path, mode):
    """As evaluated, with norms kept apart from convolutions, and with norms that still learn."""
    path = tmp_path / "net.onnx"
    net = resnet().train(mode == "training")
    training = {
        "eval": torch.onnx.TrainingMode.EVAL,
        "unfused": torch.onnx.TrainingMode.PRESERVE,
        "training": torch.onnx.TrainingMode.TRAINING,
    }[mode]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.randn(4, 3, 8, 8),),
            path,
            dynamo=False,
            training=training,
            do_constant_folding=mode == "eval",
            opset_version=17,
        )
    source = onnx.load(path)
    assert operators(source).count("BatchNormalization") == {"eval": 1, "unfused": 7, "training": 7}[mode]
    report, result = lowered(source, tmp_path)
    assert report.nodes.sparse == 8
    assert ("BatchNormalization" in operators(result)) == (mode == "training")
    assert not {"Conv", "Gemm"} & set(operators(result))
