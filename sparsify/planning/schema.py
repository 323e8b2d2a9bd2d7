"""The plan as data: frozen dataclasses with a versioned JSON form that a person can edit and feed back.

Editable in the JSON are `groups[].width` and of every layer `family`, `density`, `branches`, `rank` and
`nonlinearity`; everything else is derived from these and the model when the plan is applied (`planning.fit`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsify.errors import InvalidPlanError, Refusal
from sparsify.planning.json_form import build, members

FORMAT = "sparsify.plan"
VERSION = 2


@dataclass(frozen=True)
class PlanOptions:
    """The options a plan was made from.

    Attributes:
        family: `wide`, `parallel`, `factorized` or `doped` at equal FLOPs; `auto` chooses one of them layer
            by layer; `masked` masks only, without a budget.
        sparsity: Removed share of the masked weights, None when the width alone was given.
        width: Width factor, None when the sparsity alone was given.
        pattern: What a mask may look like, as `pattern_rules.parse_rule` reads it.
        scope: `all` groups, or the `inner` ones off the residual stream.
        budget: `model` holds the FLOPs of the model, `layer` those of every masked layer.
        distribution: How density is spread over the masked layers.
        keep_dense: fnmatch patterns of layers that are not masked.
        only: fnmatch patterns of the only layers that may be masked; empty means all.
        heads: Whether the wide family may widen groups that attention products are made of.
        sparse_factors: Whether a factorized layer masks `both` factors or the `first` only.
        branch_nonlinearity: `auto` takes what follows a layer in the user's graph; `none`, or the name of a
            nonlinearity, overrides it.
        multiple: What widths are rounded to, in channels; None is 8, or finer in models too narrow for it.
    """

    family: str = "wide"
    sparsity: float | None = 0.75
    width: float | None = None
    pattern: str = "unstructured"
    scope: str = "all"
    budget: str = "model"
    distribution: str = "uniform"
    keep_dense: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    heads: bool = True
    sparse_factors: str = "both"
    branch_nonlinearity: str = "auto"
    multiple: int | None = None


@dataclass(frozen=True)
class PlanFlops:
    """FLOPs at the example's shapes: 2 × multiply-accumulates, masked weights at their density.

    Attributes:
        dense: FLOPs of the given model.
        sparse: FLOPs of the planned model.
    """

    dense: int
    sparse: int

    @property
    def ratio(self) -> float:
        """Sparse over dense."""
        return self.sparse / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class PlanGroup:
    """A set of tensor dimensions that share one width.

    Attributes:
        id: Name of the width symbol.
        size: Width in the given model, in symbol units.
        width: Chosen width, in symbol units.
        granularity: Channels that one unit of width stands for (the head size, for heads).
        residual: Whether the width is that of a residual stream.
        pinned: Why the width cannot change, or None.
        members: The dimensions, as `weight[axis]`.
    """

    id: str
    size: int
    width: int
    granularity: int
    residual: bool
    pinned: str | None
    members: tuple[str, ...]


@dataclass(frozen=True)
class PlanTensor:
    """One weight tensor that a layer becomes.

    Attributes:
        fqn: Path of the parameter in the rewritten model.
        part: `weight`, or `branch` (parallel), `u` and `v` (factorized, doped), `sparse` (doped).
        shape: Its shape.
        nnz: Number of kept weights.
        masked: Whether it gets a mask.
    """

    fqn: str
    part: str
    shape: tuple[int, ...]
    nnz: int
    masked: bool


@dataclass(frozen=True)
class PlanLayer:
    """What becomes of one layer, and why.

    Attributes:
        fqn: Path of the module in the user's model.
        kind: `linear`, `conv1d`, `conv2d`, `conv3d` or `embedding`.
        role: Role in the network, as `graph.facts` gives it.
        family: `wide`, `parallel`, `factorized`, `doped`, `masked`, or `dense` for a layer that stays.
        density: Kept share of the masked tensors, counted: of the weight, of all branches together, of U (and
            V), of the sparse part.
        width: Output width over the given model's.
        flops: FLOPs at that width and density.
        dense_flops: FLOPs in the given model.
        weight: Path of the weight parameter in the given model.
        shape: Shape of the dense weight at the planned widths.
        dense_shape: Shape in the given model.
        nnz: Number of kept weights, over all tensors.
        groups: Width groups that the weight touches.
        reason: Why the layer is treated so.
        branches: Number of parallel branches.
        rank: Inner width of a factorized or doped layer, over all convolution groups; 0 for the others.
        nonlinearity: Inside every branch, or between U and V: `none`; `follows` for that of the given model;
            or the name of one that is inserted.
        tensors: The weights that the layer becomes.
    """

    fqn: str
    kind: str
    role: str
    family: str
    density: float
    width: float
    flops: int
    dense_flops: int
    weight: str
    shape: tuple[int, ...]
    dense_shape: tuple[int, ...]
    nnz: int
    groups: tuple[str, ...]
    reason: str
    branches: int = 1
    rank: int = 0
    nonlinearity: str = "none"
    tensors: tuple[PlanTensor, ...] = ()

    @property
    def masked(self) -> bool:
        """Whether the layer is rewritten; some of its tensors get a mask."""
        return self.family != "dense"


@dataclass(frozen=True)
class Plan:
    """For every layer what becomes of it and why, and what that costs.

    Attributes:
        model: Fingerprint of the model that the plan was made for.
        example: Shapes of the example inputs at which FLOPs are counted.
        options: The options the plan was made from.
        flops: FLOPs before and after.
        groups: Width groups with their chosen widths.
        layers: One entry a layer.
        refusals: Layers left alone, each with rule and reason.
        version: Version of the JSON form.
    """

    model: str
    example: tuple[tuple[int, ...], ...]
    options: PlanOptions
    flops: PlanFlops
    groups: tuple[PlanGroup, ...]
    layers: tuple[PlanLayer, ...]
    refusals: tuple[Refusal, ...]
    version: int = VERSION

    @property
    def widths(self) -> dict[str, int]:
        """Chosen width of every group, by id."""
        return {group.id: group.width for group in self.groups}

    @property
    def density(self) -> float:
        """Kept share of all masked weights together; 1 where none is masked."""
        masked = {tensor.fqn: tensor for layer in self.layers for tensor in layer.tensors if tensor.masked}
        total = sum(_size(tensor.shape) for tensor in masked.values())
        return sum(tensor.nnz for tensor in masked.values()) / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain JSON values."""
        body = dataclasses.asdict(self)
        body.pop("version")
        body["flops"]["ratio"] = self.flops.ratio
        return {"format": FORMAT, "version": self.version, **body}

    def to_json(self) -> str:
        """Returns the plan as JSON text, indented for editing."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any]) -> Plan:
        """Reads a plan from JSON text, or from the values already parsed.

        Raises:
            InvalidPlanError: Text that is no JSON, another format or version, or a key that is missing,
                unknown, or of the wrong type; the message names it.
        """
        data = _parse(source)
        if data.get("format") != FORMAT:
            raise InvalidPlanError(f"key 'format': expected {FORMAT!r}, found {data.get('format')!r}")
        if data.get("version") != VERSION:
            raise InvalidPlanError(
                f"key 'version': this version of the package reads plan version {VERSION}, "
                f"found {data.get('version')!r}; make the plan anew"
            )
        body = {key: value for key, value in data.items() if key != "format"}
        flops = dict(members(body.get("flops"), "flops"))
        flops.pop("ratio", None)
        made: Plan = build(cls, {**body, "flops": flops}, "plan")
        return made


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _parse(source: str | bytes | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    try:
        data = json.loads(source)
    except ValueError as error:
        raise InvalidPlanError(f"the plan is not valid JSON: {error}") from error
    return members(data, "plan")
