"""Data for fine-tuning: what a data set is, and the SPECs that name one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sparsify.errors import UserError
from sparsify.train.functions import import_function

Task = Literal["classification", "language", "regression"]


@dataclass(frozen=True)
class Batch:
    """What one step needs: the model's arguments and the targets of its output."""

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        kwargs = {name: tensor.to(device) for name, tensor in self.kwargs.items()}
        return Batch(tuple(tensor.to(device) for tensor in self.args), kwargs, self.targets.to(device))

    def parts(self, count: int) -> list[Batch]:
        """The batch in at most `count` parts of nearly equal size, none of them empty."""
        if count == 1:
            return [self]
        number = min(count, len(self.targets))
        args = [tensor.tensor_split(number) for tensor in self.args]
        kwargs = {name: tensor.tensor_split(number) for name, tensor in self.kwargs.items()}
        targets = self.targets.tensor_split(number)
        return [
            Batch(
                tuple(pieces[i] for pieces in args),
                {name: pieces[i] for name, pieces in kwargs.items()},
                targets[i],
            )
            for i in range(number)
        ]


class Examples(Protocol):
    """A numbered collection of examples."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, index: Tensor) -> Batch:
        """The examples of these numbers (int64, one dimension), stacked."""
        ...

    def digest(self) -> int:
        """A number that changes when the examples do."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Examples along the first dimension of tensors.

    Attributes:
        inputs: Positional inputs of the model, each [N, …].
        targets: Class numbers (int64 [N] or [N, …]) or values (float32 [N, …]).
        keywords: Keyword inputs of the model, each [N, …].
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    keywords: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(tensor) for tensor in (*self.inputs, *self.keywords.values(), self.targets)}
        if len(sizes) != 1:
            raise UserError(f"inputs and targets differ in their number of examples: {sorted(sizes)}")
        if 0 in sizes:
            raise UserError("there are no examples in the data")

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: Tensor) -> Batch:
        """See `Examples.batch`."""
        keywords = {name: tensor[index] for name, tensor in self.keywords.items()}
        return Batch(tuple(tensor[index] for tensor in self.inputs), keywords, self.targets[index])

    def digest(self) -> int:
        """See `Examples.digest`."""
        return checksum(
            (*self.inputs, *(self.keywords[name] for name in sorted(self.keywords)), self.targets)
        )


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows of a stream of tokens; the targets are the next tokens.

    Attributes:
        tokens: One dimension, integers.
        length: Tokens in a window.
    """

    tokens: Tensor
    length: int

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise UserError(
                f"{self.tokens.numel()} tokens are too few for one window of {self.length}; "
                "give more text or a smaller sequence length"
            )

    def __len__(self) -> int:
        return (self.tokens.numel() - 1) // self.length

    def batch(self, index: Tensor) -> Batch:
        """See `Examples.batch`: inputs and targets are int64 [B, length]."""
        positions = index[:, None] * self.length + torch.arange(self.length + 1)
        window = self.tokens[positions].long()
        return Batch((window[:, :-1],), {}, window[:, 1:].contiguous())

    def digest(self) -> int:
        """See `Examples.digest`."""
        return checksum((self.tokens, torch.tensor([self.length])))


@dataclass(frozen=True)
class Data:
    """A data set with its task.

    Attributes:
        name: The SPEC that it came from.
        task: What the loss is: cross-entropy of classes, of next tokens, or mean squared error.
        train: Examples to train on.
        test: Examples to measure on; never trained on.
    """

    name: str
    task: Task
    train: Examples
    test: Examples

    def digest(self) -> str:
        """Identifies the data, for checks when a run is resumed."""
        sizes = f"{self.task}:{len(self.train)}:{len(self.test)}"
        return f"{sizes}:{self.train.digest():08x}{self.test.digest():08x}"


def checksum(tensors: Sequence[Tensor]) -> int:
    """CRC-32 over the shapes and bytes of tensors."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(repr((tensor.dtype, tuple(tensor.shape))).encode(), value)
        value = zlib.crc32(
            tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"", value
        )
    return value


def from_arrays(name: str, arrays: Mapping[str, Any]) -> Data:
    """Data from `x_train`, `y_train`, `x_test` and `y_test`, or from `x` and `y`, split 3:1.

    An `x` is one array, or a mapping of arrays for a model that takes its inputs by name (`input_ids`,
    `attention_mask`). Integer targets are classes, floating-point targets are values to regress. float64
    becomes float32, uint8 inputs (images) become float32, other integers int64.

    Raises:
        UserError: When names are missing or sizes differ.
    """
    if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
        y_train, y_test = torch.as_tensor(arrays["y_train"]), torch.as_tensor(arrays["y_test"])
        train, test = torch.arange(len(y_train)), torch.arange(len(y_test))
        x_train, x_test = arrays["x_train"], arrays["x_test"]
    elif {"x", "y"} <= set(arrays):
        x_train = x_test = arrays["x"]
        y_train = y_test = torch.as_tensor(arrays["y"])
        sizes = [len(x) for x in (x_train.values() if isinstance(x_train, Mapping) else [x_train])]
        if any(size != len(y_train) for size in sizes):
            raise UserError(f"'{name}': x has {sizes[0]} examples, y has {len(y_train)}")
        train, test = split(y_train)
    else:
        raise UserError(
            f"'{name}' must hold x_train, y_train, x_test and y_test (or x and y), it holds {sorted(arrays)}"
        )
    values = y_train.is_floating_point()
    return Data(
        name,
        "regression" if values else "classification",
        _examples(x_train, y_train, train),
        _examples(x_test, y_test, test),
    )


def _examples(x: Any, y: Tensor, index: Tensor) -> Arrays:
    """The examples of these numbers; more inputs than targets, or fewer, are left for `Arrays` to refuse."""
    targets = y.to(torch.float32 if y.is_floating_point() else torch.int64)[index]
    named = {key: torch.as_tensor(array) for key, array in x.items()} if isinstance(x, Mapping) else {}
    whole = len(index) == len(y)
    picked = {key: _input(array if whole else array[index]) for key, array in named.items()}
    if named:
        return Arrays((), targets, picked)
    array = torch.as_tensor(x)
    return Arrays((_input(array if whole else array[index]),), targets)


def split(targets: Tensor, share: float = 0.25, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers of the training and the test examples, the same at every call.

    Class numbers (integers, one dimension) are split class by class, so that every class has its share.

    Args:
        targets: [N, …].
        share: Share of test examples.
        seed: Seed of the split.
    """
    generator = torch.Generator().manual_seed(seed)
    if targets.is_floating_point() or targets.dim() != 1:
        groups = [torch.arange(len(targets))]
    else:
        groups = [torch.nonzero(targets == label).reshape(-1) for label in torch.unique(targets)]
    train: list[Tensor] = []
    test: list[Tensor] = []
    for group in groups:
        shuffled = group[torch.randperm(len(group), generator=generator)]
        size = round(share * len(group))
        test.append(shuffled[:size])
        train.append(shuffled[size:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def from_function(path: str) -> Data:
    """Data from a call of `package.module:function`.

    The function takes no arguments and returns a `Data`, a mapping as `from_arrays` reads it, or a tuple
    (x_train, y_train, x_test, y_test).

    Raises:
        UserError: When it cannot be imported, or returns something else.
    """
    result = import_function(path, "data")()
    if isinstance(result, Data):
        return result
    if isinstance(result, Mapping):
        return from_arrays(path, result)
    if isinstance(result, tuple) and len(result) == 4:
        return from_arrays(path, dict(zip(("x_train", "y_train", "x_test", "y_test"), result, strict=True)))
    raise UserError(
        f"data '{path}' returned {type(result).__name__}; it must return train.Data, a mapping with x_train, "
        "y_train, x_test, y_test, or a tuple of those four"
    )


def _input(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.dtype == torch.uint8:
        return tensor.float()
    return tensor if tensor.dtype == torch.bool else tensor.long()
