"""What a row of the coverage table is, and factories of third-party models and of example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Example = tuple[tuple[Any, ...], dict[str, Any]]
VOCABULARY = 64


@dataclass(frozen=True)
class Row:
    """A model and what is expected of it.

    Attributes:
        name: Unique name.
        build: Builds the model with random weights.
        example: (batch, length) to (args, kwargs); models without a length ignore it.
        refused: (rule, fqn) of what must be refused by name.
        nothing: fnmatch patterns of family and scope, as `"wide/inner"`, in which nothing can be transformed.
        onnx: Part of the reason for which torch.onnx cannot write the model, or None where it can.
        batch: Batch size of the example.
        length: Length of the example.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int, int], Example]
    refused: tuple[tuple[str, str], ...] = ()
    nothing: tuple[str, ...] = ()
    onnx: str | None = None
    batch: int = 2
    length: int = 12

    def model(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return randomise_statistics(self.build()).eval()

    def inputs(self, batch: int | None = None, length: int | None = None, seed: int = 1) -> Example:
        """Example inputs, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.example(batch or self.batch, length or self.length)


def randomise_statistics(model: nn.Module) -> nn.Module:
    """Gives BatchNorm statistics that matter, so that a lost buffer shows."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def hf(kind: str, config: str | None = None, **settings: Any) -> Callable[[], nn.Module]:
    """Factory of a transformers model with random weights."""

    def build() -> nn.Module:
        import transformers

        cls = getattr(transformers, kind)
        kind_of_settings = getattr(transformers, config) if config is not None else cls.config_class
        made = kind_of_settings(**settings)
        made.use_cache = False
        return cls(made)

    return build


def pixels(size: int = 32, channels: int = 3, name: str = "pixel_values") -> Callable[[int, int], Example]:
    """Images."""
    return lambda batch, length: ((), {name: torch.randn(batch, channels, size, size)})


def images(size: int = 16, channels: int = 3) -> Callable[[int, int], Example]:
    """Images, by position."""
    return lambda batch, length: ((torch.randn(batch, channels, size, size),), {})


def features(*shape: int) -> Callable[[int, int], Example]:
    """One tensor of floats, by position."""
    return lambda batch, length: ((torch.randn(batch, *shape),), {})


def sequence(width: int, length: int = 10) -> Callable[[int, int], Example]:
    """Vectors in a row, by position; the length of floating-point inputs is fixed."""
    return features(length, width)


def tokens(*, mask: bool = True, **more: Callable[[int, int], torch.Tensor]) -> Callable[[int, int], Example]:
    """Token ids, perhaps with a mask whose first row is padded, and further inputs."""

    def example(batch: int, length: int) -> Example:
        kwargs: dict[str, Any] = {"input_ids": torch.randint(3, VOCABULARY, (batch, length))}
        if mask:
            kwargs["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
            kwargs["attention_mask"][0, length - 2 :] = 0
        return (), kwargs | {name: make(batch, length) for name, make in more.items()}

    return example


def ids(batch: int, length: int) -> torch.Tensor:
    """Token ids of a decoder."""
    return torch.randint(3, VOCABULARY, (batch, length))


def with_inputs(**make: Callable[[int, int], torch.Tensor]) -> Callable[[int, int], Example]:
    """Keyword inputs, each from its own factory."""
    return lambda batch, length: ((), {name: one(batch, length) for name, one in make.items()})


def settings(common: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """Settings of one configuration over those that several share."""
    return {**common, **own}
