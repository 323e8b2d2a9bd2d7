"""The base: the dense model that hyper-parameters were tuned on, where it is not the given one.

A base has the architecture of the given model at other widths. What scaling needs of it are shapes, what its
initial weights look like, and its head sizes; a JSON file holds these, so that the model itself can go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsify.errors import UserError

_FORMAT = "sparsify base"
_VERSION = 1


@dataclass(frozen=True)
class BaseTensor:
    """One parameter of the base.

    Attributes:
        fqn: Its path in the traced base.
        shape: Its shape.
        role: Role of the layer that it is the weight of; empty for other parameters.
        groups: Convolution groups of that layer.
        constant: The value of all entries, where they have one.
        mean: Mean of the entries; 0 where it is not clearly another.
        std: Standard deviation of the entries, or None where they do not look like initial weights.
    """

    fqn: str
    shape: tuple[int, ...]
    role: str = ""
    groups: int = 1
    constant: float | None = None
    mean: float = 0.0
    std: float | None = None


@dataclass(frozen=True)
class BaseAttention:
    """One product of queries and keys in the base, in the order of execution.

    Attributes:
        head_size: The size d that the product sums over.
        scale: Factor s of the model's own on the logits; 1/√d as a rule. None where it is no constant.
    """

    head_size: int
    scale: float | None


@dataclass(frozen=True)
class Base:
    """A dense base, as far as scaling needs to know it.

    Attributes:
        tensors: Every parameter, under each of its names.
        attentions: Every attention.
    """

    tensors: tuple[BaseTensor, ...]
    attentions: tuple[BaseAttention, ...] = ()

    @cached_property
    def _by_fqn(self) -> Mapping[str, BaseTensor]:
        return {tensor.fqn: tensor for tensor in self.tensors}

    def __getitem__(self, fqn: str) -> BaseTensor:
        return self._by_fqn[fqn]

    def check_fits(self, model: Base) -> None:
        """Checks that a model has this base's architecture: the same parameters and roles, any widths.

        Args:
            model: The model, described as a base.

        Raises:
            UserError: A parameter is on one side only, or has another number of dimensions, another kernel or
                another role; or the attentions are not as many.
        """
        mine, others = self._by_fqn, model._by_fqn
        _same_names([name for name in others if name not in mine], "the base lacks", len(others))
        _same_names([name for name in mine if name not in others], "the model lacks", len(others))
        for name, other in others.items():
            own = mine[name]
            kernels = [one.shape[2:] if one.role not in ("", "embedding") else () for one in (own, other)]
            if len(own.shape) != len(other.shape) or kernels[0] != kernels[1]:
                raise UserError(
                    f"base: {name} has shape {list(own.shape)} in the base and {list(other.shape)} in the "
                    "model; only widths may differ, not the number of dimensions or a kernel"
                )
            if own.role != other.role:
                raise UserError(
                    f"base: {name} is the weight of {_layer(own)} in the base and of {_layer(other)} in the "
                    "model; the base must be the same architecture at other widths"
                )
        if len(self.attentions) != len(model.attentions):
            raise UserError(
                f"base: it multiplies queries with keys {len(self.attentions)} times, the model "
                f"{len(model.attentions)} times; build both with the same kind of attention"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back to an equal value."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "tensors": [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.tensors],
            "attentions": [asdict(one) for one in self.attentions],
        }

    @classmethod
    def from_json(cls, data: Any) -> Base:
        """Reads what `to_json` wrote.

        Raises:
            UserError: When it is something else, of another version, or misses or mistypes a field.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            raise UserError("this is not a base; save_base writes one")
        if data.get("version") != _VERSION:
            raise UserError(f"base of version {data.get('version')!r}; this package reads {_VERSION}")
        try:
            tensors = tuple(_tensor(entry) for entry in data["tensors"])
            attentions = tuple(
                BaseAttention(int(one["head_size"]), None if one["scale"] is None else float(one["scale"]))
                for one in data["attentions"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the base cannot be read: {error!r}; write it anew with save_base") from error
        return cls(tensors, attentions)

    def save(self, path: str | Path) -> None:
        """Writes JSON; the file appears whole or not at all."""
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(target)

    @classmethod
    def read(cls, path: str | Path) -> Base:
        """Reads what `save` wrote.

        Raises:
            UserError: The file is missing or holds no base.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the base {path}: {error}") from error
        try:
            return cls.from_json(data)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _tensor(entry: Mapping[str, Any]) -> BaseTensor:
    one = BaseTensor(**{**entry, "shape": tuple(int(size) for size in entry["shape"])})
    numbers = (one.groups, one.mean, *(value for value in (one.constant, one.std) if value is not None))
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
        raise ValueError(f"{one.fqn}: numbers expected, found {numbers}")
    if not isinstance(one.fqn, str) or not isinstance(one.role, str) or min(one.shape, default=1) < 1:
        raise ValueError(f"{one.fqn!r}: no parameter of shape {one.shape} and role {one.role!r}")
    return one


def _same_names(missing: list[str], what: str, total: int) -> None:
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(
            f"base: {what} {shown}, of {total} parameters of the model; the base must be the same "
            "architecture with as many layers, at other widths"
        )


def _layer(tensor: BaseTensor) -> str:
    article = "an" if tensor.role[:1] in "aeio" else "a"
    return f"{article} {tensor.role} layer" if tensor.role else "no layer"
