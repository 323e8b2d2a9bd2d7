"""The networks: built with random weights, exported once, cut by magnitude in the ONNX file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import sparsify
from sparsify.archive import wrap
from sparsify.lowering.magnitude import cut
from sparsify.pattern_rules import PatternRule, UnstructuredRule, parse_rule

TOKENS = 128
Array = np.ndarray[Any, np.dtype[Any]]
_OLDEST_READER = 9
"""Version of the file format that engines of 2024 read."""

IMAGES = ("resnet50", "mobilenetv2")
SHAPES: Mapping[str, dict[str, Any]] = {
    "resnet50": {},
    "mobilenetv2": {},
    "bert": {},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}
_TINY_ENCODER = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "vocab_size": 100,
}
TINY: Mapping[str, dict[str, Any]] = {
    "resnet50": {"embedding_size": 16, "hidden_sizes": [64, 128], "depths": [1, 1]},
    "mobilenetv2": {"depth_multiplier": 0.35},
    "bert": _TINY_ENCODER,
    "minilm": _TINY_ENCODER,
}


class Logits(nn.Module):
    """An image classifier, called with pixels alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, classes]."""
        logits: Tensor = self.inner(pixel_values).logits
        return logits


class States(nn.Module):
    """A text encoder, called with tokens alone, returning its last state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] → [B, T, width]."""
        state: Tensor = self.inner(input_ids).last_hidden_state
        return state


@dataclass(frozen=True)
class Network:
    """A network and what it is called with.

    Attributes:
        module: In eval mode.
        example: Input of two samples.
        ends_dense: Whether the first convolution and the readout keep all weights.
    """

    module: nn.Module
    example: Tensor
    ends_dense: bool


def build(name: str, *, tiny: bool = False) -> Network:
    """A network with random weights.

    Args:
        name: `resnet50`, `mobilenetv2`, `bert` or `minilm`.
        tiny: A toy of the same kind.
    """
    import transformers

    torch.manual_seed(0)
    shape = (TINY if tiny else SHAPES)[name]
    if name in IMAGES:
        kind = "ResNet" if name == "resnet50" else "MobileNetV2"
        config = getattr(transformers, f"{kind}Config")(num_labels=1000, **shape)
        module = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
        side = 32 if tiny else 224
        return Network(Logits(module), torch.randn(2, 3, side, side), True)
    module = transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False)
    tokens = torch.randint(100, (2, 16 if tiny else TOKENS))
    return Network(States(module.eval()), tokens, False)  # type: ignore[no-untyped-call]


def exported(name: str, folder: Path, *, tiny: bool = False) -> Path:
    """The dense network in ONNX, for any batch size; made once.

    Args:
        name: As `build` takes it.
        folder: Where files are kept.
        tiny: A toy of the same kind.
    """
    path = folder / f"{name}{'-tiny' if tiny else ''}.onnx"
    if path.exists():
        return path
    network = build(name, tiny=tiny)
    shapes = {"pixel_values" if network.ends_dense else "input_ids": {0: torch.export.Dim("batch")}}
    traced = sparsify.trace(network.module, (network.example,), dynamic_shapes=shapes)
    folder.mkdir(parents=True, exist_ok=True)
    sparsify.export(wrap(traced), path, dense=True)
    return path


def pruned(
    name: str, sparsity: float, folder: Path, *, pattern: str = "unstructured", tiny: bool = False
) -> Path:
    """The exported network with the smallest weights of every layer at zero; made once.

    Depthwise and grouped convolutions and what is looked up in tables stay as they are; of image classifiers
    also the first convolution and the readout, as in the published sparse ones.

    Args:
        name: As `build` takes it.
        sparsity: Share of zeros in each layer.
        folder: Where files are kept.
        pattern: What the masks look like; layers that cannot have it stay dense.
        tiny: A toy of the same kind.
    """
    dense = exported(name, folder, tiny=tiny)
    path = dense.with_name(f"{dense.stem}-{pattern}-{sparsity:g}.onnx")
    if path.exists():
        return path
    model = onnx.load(dense)
    cut_model(model, sparsity, pattern=pattern, ends_dense=name in IMAGES)
    model.ir_version = min(model.ir_version, _OLDEST_READER)
    beside = path.with_suffix(".part")
    onnx.save(model, beside)
    return beside.replace(path)


def cut_model(model: onnx.ModelProto, sparsity: float, *, pattern: str, ends_dense: bool) -> int:
    """Sets the smallest weights of a model's layers to zero, in place; returns how many layers were cut.

    Args:
        model: With its weights loaded.
        sparsity: Share of zeros in each layer.
        pattern: What the masks look like.
        ends_dense: Whether the first convolution and the last product keep all weights.
    """
    rule, done = parse_rule(pattern), 0
    found = list(_layers(model))
    for tensor, inputs_first in found[1:-1] if ends_dense else found:
        weight = numpy_helper.to_array(tensor)
        outputs_first = weight.T if inputs_first else weight
        if rule.refusal(outputs_first.shape) is not None:
            continue
        thin = _thinned(np.ascontiguousarray(outputs_first), rule, 1 - sparsity)
        kept = numpy_helper.from_array(np.ascontiguousarray(thin.T if inputs_first else thin), tensor.name)
        tensor.CopyFrom(kept)
        done += 1
    return done


def _thinned(weight: Array, rule: PatternRule, density: float) -> Array:
    """The weight without its smallest entries; unstructured ones without sorting all."""
    if not isinstance(rule, UnstructuredRule):
        return cut(weight, rule, density)
    count = weight.size - rule.count(weight.shape, density)
    flat = weight.reshape(-1).copy()
    flat[np.argpartition(np.abs(flat), count)[:count]] = 0
    return flat.reshape(weight.shape)


def _layers(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Weights of linear layers and ungrouped convolutions, each once, and whether inputs stand first."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
            continue
        attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("group", 1) == 1:
            tensor = constants.pop(node.input[1])
            if len(tensor.dims) in (2, 4):
                yield tensor, node.op_type != "Conv" and not attributes.get("transB", 0)
