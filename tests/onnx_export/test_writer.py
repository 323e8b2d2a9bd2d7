"""Exported files compute what torch computes, plainly or with sparse operators."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import ParityError, SparsifyError, UserError
from sparsify.graph.trace import trace
from sparsify.masks import masked_parameters
from sparsify.onnx_export import export, writer
from sparsify.runtime import Session
from tests.models import MODELS


class Net(nn.Module):
    """Everything that must change on the way out: dropout, BatchNorm, a residual, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.relu(self.norm(self.conv(image)))
        pooled = self.drop(features.mean((2, 3)))
        return {"logits": self.head(pooled), "features": features}


def pruned(model: nn.Module, density: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data *= torch.rand(module.weight.shape, generator=generator) < density
    return model


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return pruned(model)


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_plain_file_has_standard_operators_and_names_from_the_structure(tmp_path, net):
    path = tmp_path / "net.onnx"
    report = export(net, path, args=(IMAGE,), dense=True)
    built = onnx.load(path)
    onnx.checker.check_model(built, full_check=True)
    assert {item.domain for item in built.graph.node} == {""}
    assert [value.name for value in built.graph.output] == ["logits", "features"]
    assert built.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not {"Dropout", "BatchNormalization"} & {item.op_type for item in built.graph.node}
    assert {item.name for item in built.graph.node} >= {"conv/Conv", "head/Gemm"}
    assert (report.nodes.sparse, report.nodes.dense) == (0, 2)
    assert [item.name for item in tmp_path.iterdir()] == ["net.onnx"]


def test_zeros_stay_in_place(tmp_path, net):
    export(net, tmp_path / "net.onnx", args=(IMAGE,), dense=True)
    tensors = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(tmp_path / "net.onnx").graph.initializer
    }
    np.testing.assert_array_equal(tensors["head.weight"], net.head.weight.detach().numpy())
    assert np.count_nonzero(tensors["conv.weight"]) == torch.count_nonzero(net.conv.weight)


def test_what_the_exporter_noted_for_itself_is_gone(tmp_path, net):
    export(net, tmp_path / "net.onnx", args=(IMAGE,), dense=True)
    content = (tmp_path / "net.onnx").read_bytes()
    assert b"stack_trace" not in content
    assert __file__.encode() not in content
    properties = {item.key: item.value for item in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert set(properties) == {"sparsify.version"}


@pytest.mark.parametrize("dense", [True, False])
def test_other_batch_sizes_run(tmp_path, net, dense):
    path = tmp_path / "net.onnx"
    report = export(net, path, args=(IMAGE[:1],), dense=dense)
    assert report.max_abs_error < 1e-4
    net.eval()
    for batch in (1, 5):
        image = torch.randn(batch, 3, 6, 6)
        outputs = Session(path).run({"image": image.numpy()})
        with torch.no_grad():
            expected = net(image)
        for name, value in outputs.items():
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-4, atol=1e-5)


def test_training_flags_are_left_as_they_were(tmp_path, net):
    net.train()
    net.norm.eval()
    export(net, tmp_path / "net.onnx", args=(IMAGE,), dense=True)
    assert net.training
    assert net.drop.training
    assert not net.norm.training


def test_traced_module_exports(tmp_path):
    test_model = MODELS["mlp"]
    args, kwargs = test_model.example(3, 1)
    traced = trace(pruned(test_model.model()), args, kwargs)
    report = export(traced.module, tmp_path / "m.onnx", args=args, kwargs=kwargs)
    assert report.nodes.sparse + report.nodes.dense == 3


def test_transformed_model_exports_without_example_inputs_and_names_its_family(tmp_path):
    test_model = MODELS["mlp"]
    args, kwargs = test_model.example(3, 1)
    model = sparsify.transform(test_model.model(), args, kwargs, sparsity=0.5)
    report = export(model, tmp_path / "m.onnx")
    assert report.max_abs_error < 1e-5
    properties = {item.key: item.value for item in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties["sparsify.family"] == "wide"


def test_weight_outside_its_mask_stops_the_export(tmp_path):
    test_model = MODELS["mlp"]
    args, kwargs = test_model.example(3, 1)
    model = sparsify.transform(test_model.model(), args, kwargs, sparsity=0.5)
    entry = next(iter(masked_parameters(model).values()))
    with torch.no_grad():
        entry.param.add_(1.0)
    with pytest.raises(SparsifyError, match="outside the mask"):
        export(model, tmp_path / "m.onnx")


def test_transformer_keeps_batch_and_length_open(tmp_path):
    test_model = MODELS["bert"]
    args, kwargs = test_model.example(2, 8)
    model = pruned(test_model.model())
    path = tmp_path / "bert.onnx"
    export(model, path, args=args, kwargs=kwargs)
    wider_args, wider_kwargs = test_model.example(3, 5)
    with torch.no_grad():
        expected = model(*wider_args, **wider_kwargs)
    session = Session(path)
    tensors = [item for item in [*wider_args, *wider_kwargs.values()] if isinstance(item, torch.Tensor)]
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.inputs, tensors, strict=True)}
    outputs = session.run(feeds)
    assert "last_hidden_state" in outputs
    np.testing.assert_allclose(
        outputs["last_hidden_state"], expected.last_hidden_state.numpy(), rtol=1e-4, atol=1e-5
    )


def test_model_without_example_inputs_says_how_to_give_them(tmp_path, net):
    with pytest.raises(UserError, match=r"args=\(x,\)"):
        export(net, tmp_path / "net.onnx")


class Listener(logging.Handler):
    """Keeps what loggers say."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


def test_nodes_that_could_not_be_folded_are_not_talked_of_and_all_else_is(monkeypatch):
    folding, other = (
        logging.getLogger(f"onnxscript.optimizer.{name}") for name in ("_constant_folding", "x")
    )
    listener = Listener()
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    for logger in (folding, other):  # whatever other libraries made of them
        monkeypatch.setattr(logger, "handlers", [listener])
        monkeypatch.setattr(logger, "disabled", False)
        logger.setLevel(logging.WARNING)
    with writer._quiet():
        folding.warning("Evaluation failed: cannot reshape array of size 1 into shape (1,16)")
        other.warning("heard")
    folding.warning("heard again")
    assert listener.heard == ["heard", "heard again"]


def test_missing_folder_is_found_before_the_work(tmp_path, net):
    with pytest.raises(UserError, match="does not exist"):
        export(net, tmp_path / "nowhere" / "net.onnx", args=(IMAGE,))


def test_file_that_computes_something_else_fails_and_is_not_left(tmp_path, net, monkeypatch):
    convert = writer._convert

    def convert_wrongly(capture):
        proto, results = convert(capture)
        weight = next(item for item in proto.graph.initializer if item.name == "head.weight")
        value = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
        return proto, results

    monkeypatch.setattr(writer, "_convert", convert_wrongly)
    with pytest.raises(ParityError, match=r"exported model against torch.*'logits'"):
        export(net, tmp_path / "net.onnx", args=(IMAGE,))
    assert list(tmp_path.iterdir()) == []
