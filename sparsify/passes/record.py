"""The record: how a model was made, kept with it and inside its archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparsify.errors import InvalidPlanError, Refusal
from sparsify.graph.inputs import InputSpec
from sparsify.graph.traced import KeySource, Traced
from sparsify.passes.dense import DenseTensor, dense_tensors
from sparsify.planning import Plan
from sparsify.scaling import Scaling

VERSION = 1
How = Literal["kept", "redrawn", "widened", "narrowed", "pruned", "branched", "factored", "doped", "added"]


@dataclass(frozen=True)
class ParameterMapping:
    """What became of one parameter of the user's model.

    Attributes:
        old: Key in the user's state_dict.
        new: Key in the rewritten model's.
        how: `kept` values and shape; `redrawn` at the same shape; `widened`, and drawn or holding the old
            one; `narrowed`, some of its places taken out; `pruned`, kept inside a mask; `branched`,
            `factored` or `doped`: one of several that the old one became; `added` beside it, where the old
            model had none of its kind.
        transposed: Whether the new tensor is the transpose of the old one.
    """

    old: str
    new: str
    how: How
    transposed: bool = False


@dataclass
class Record:
    """Everything this package knows about a model beyond its graph and tensors.

    Attributes:
        plan: The plan it was made by; None for a dense model that was only traced or loaded.
        parameter_map: One entry a parameter.
        scaling: Multipliers of every parameter; None without a plan.
        weights: Whether the weights are `new` or were `kept`.
        inputs: The example inputs' structure, shapes and dynamic dimensions.
        key_map: state_dict key to its source in the user's model.
        ties: Groups of keys that share one Parameter.
        train_record: What training mode changes and the graph does not say.
        parameters_dense: Parameters of the given model, ties counted once.
        refusals: What the trace could not capture; training stops on what concerns it.
        dense: The tensors of the dense model, and where their units are.
        preserve: How far a model that kept its weights started from the dense one (`recover.report`).
        initial_density: Share of the masked weights that was active at the start, where training is to prune
            them to the planned counts; None where masks started as planned.
    """

    plan: Plan | None
    parameter_map: tuple[ParameterMapping, ...]
    scaling: Scaling | None
    weights: Literal["new", "kept"]
    inputs: InputSpec
    key_map: Mapping[str, KeySource]
    ties: tuple[tuple[str, ...], ...]
    train_record: Mapping[str, Any]
    parameters_dense: int
    refusals: tuple[Refusal, ...] = ()
    dense: tuple[DenseTensor, ...] = ()
    preserve: Mapping[str, Any] | None = None
    initial_density: float | None = None

    @classmethod
    def of_dense(cls, traced: Traced) -> Record:
        """The record of a model that was traced and not rewritten."""
        mapping = parameter_map(traced, {})
        return cls(
            plan=None,
            parameter_map=mapping,
            scaling=None,
            weights="kept",
            inputs=InputSpec.from_traced(traced),
            key_map=traced.key_map,
            ties=traced.ties,
            train_record=traced.train_record,
            parameters_dense=sum(parameter.numel() for parameter in traced.module.parameters()),
            refusals=traced.refusals,
            dense=dense_tensors(traced),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values that `from_json` reads back to an equal record."""
        return {
            "version": VERSION,
            "plan": self.plan.to_dict() if self.plan else None,
            "parameter_map": [asdict(entry) for entry in self.parameter_map],
            "scaling": self.scaling.to_json() if self.scaling else None,
            "weights": self.weights,
            "inputs": self.inputs.to_json(),
            "key_map": {key: asdict(source) for key, source in self.key_map.items()},
            "ties": [list(tie) for tie in self.ties],
            "train_record": dict(self.train_record),
            "parameters_dense": self.parameters_dense,
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "dense": [tensor.to_json() for tensor in self.dense],
            "initial_density": self.initial_density,
            "preserve": None if self.preserve is None else dict(self.preserve),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Reads what `to_json` wrote.

        Raises:
            InvalidPlanError: The record is of another version, or a field is missing or of the wrong type.
        """
        if data.get("version") != VERSION:
            raise InvalidPlanError(f"record of version {data.get('version')!r}; this package reads {VERSION}")
        try:
            return cls(
                plan=Plan.from_json(data["plan"]) if data["plan"] is not None else None,
                parameter_map=tuple(ParameterMapping(**entry) for entry in data["parameter_map"]),
                scaling=Scaling.from_json(data["scaling"]) if data["scaling"] is not None else None,
                weights=data["weights"],
                inputs=InputSpec.from_json(data["inputs"]),
                key_map={key: KeySource(**source) for key, source in data["key_map"].items()},
                ties=tuple(tuple(tie) for tie in data["ties"]),
                train_record=data["train_record"],
                parameters_dense=int(data["parameters_dense"]),
                refusals=tuple(Refusal(**refusal) for refusal in data["refusals"]),
                dense=tuple(DenseTensor.from_json(tensor) for tensor in data.get("dense", ())),
                preserve=data.get("preserve"),
                initial_density=data.get("initial_density"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidPlanError(f"the stored record cannot be read: {error!r}") from error


def parameter_map(
    traced: Traced, how: Mapping[str, How], origins: Mapping[str, str] | None = None
) -> tuple[ParameterMapping, ...]:
    """One entry for every parameter of the rewritten model.

    Args:
        traced: The given model.
        how: What became of a parameter, by its new name; `kept` by default.
        origins: New names and what they come from in the traced model; None where all names are the old ones.
    """
    if origins is None:
        origins = {name: name for name, _ in traced.module.named_parameters(remove_duplicate=False)}
    entries = []
    for name, origin in origins.items():
        source = traced.key_map.get(origin, KeySource(origin))
        entries.append(ParameterMapping(source.key, name, how.get(name, "kept"), source.transposed))
    return tuple(entries)
