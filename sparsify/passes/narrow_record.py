"""What a narrowed model's record says: plan, scaling and parameter map at the sizes that are there now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import prod

from torch import Tensor, nn
from torch.fx import GraphModule

from sparsify.graph.facts import Facts
from sparsify.graph.inputs import InputSpec
from sparsify.graph.traced import Traced
from sparsify.masks.patterns import parse_pattern
from sparsify.masks.state import masked_parameters
from sparsify.passes.record import ParameterMapping, Record
from sparsify.planning import Plan
from sparsify.planning.schema import PlanFlops, PlanGroup, PlanLayer, PlanTensor
from sparsify.scaling import Scaling, TensorScale

_MATRICES = ("input", "hidden", "depthwise", "grouped", "branch", "factor")


def narrowed_record(
    traced: Traced, record: Record, facts: Facts, result: nn.Module, flops: tuple[int, int]
) -> Record:
    """The record of a narrowed model.

    Args:
        traced: The model before.
        record: Its record.
        facts: Its facts.
        result: The model after.
        flops: FLOPs before and after.

    Returns:
        The record with every number counted anew. A plan whose widths cannot be told is dropped, and so are
        the places of the dense model's units: a dense checkpoint does not fit any more.
    """
    made = [name for name, _ in result.named_parameters() if name not in facts.parameters]
    scaling = record.scaling
    return dataclasses.replace(
        record,
        plan=None if record.plan is None else _plan(record.plan, result, flops[1]),
        scaling=None if scaling is None else _scaling(scaling, facts, traced.module, result, made),
        parameter_map=_parameter_map(record, traced.module, result, made),
        inputs=InputSpec.from_traced(traced),
        ties=traced.ties,
        refusals=traced.refusals,
        dense=(),
    )


def _parameter_map(
    record: Record, before: nn.Module, after: nn.Module, made: list[str]
) -> tuple[ParameterMapping, ...]:
    old = dict(before.named_parameters(remove_duplicate=False))
    new = dict(after.named_parameters(remove_duplicate=False))

    def entry(mapping: ParameterMapping) -> ParameterMapping:
        changed = mapping.new in old and old[mapping.new].shape != new[mapping.new].shape
        return dataclasses.replace(mapping, how="narrowed") if changed else mapping

    kept = tuple(entry(mapping) for mapping in record.parameter_map)
    return kept + tuple(ParameterMapping("", name, "added") for name in made)


def _scaling(
    scaling: Scaling, facts: Facts, before: GraphModule, after: nn.Module, made: list[str]
) -> Scaling:
    """Factors at the fan-ins, fan-outs and densities that are there now."""
    old, new = _tensors(before), _tensors(after)
    behind = {layer.weight for layer in facts.layers if layer.batchnorm_follows}
    tensors = [
        _rescaled(one, old[one.fqn], new[one.fqn], scaling, one.fqn in behind) if one.fqn in old else one
        for one in scaling.tensors
    ]
    for name in made:
        weight = name.removesuffix("bias") + "weight"
        m_out = next((one.m_out for one in tensors if one.fqn == weight), 1.0)
        sgd = 1.0 if scaling.parameterization == "sp" else m_out
        eps = 1.0 if scaling.parameterization == "sp" else 1 / m_out
        tensors.append(TensorScale(name, "bias", 1.0, m_out, 1.0, 1.0, 1.0, sgd, 1.0, adam_eps=eps))
    return dataclasses.replace(scaling, tensors=tuple(tensors))


def _tensors(module: nn.Module) -> dict[str, tuple[Tensor, float]]:
    """Every parameter with its density."""
    masks = {id(entry.param): entry.density for entry in masked_parameters(module).values()}
    named = module.named_parameters(remove_duplicate=False)
    return {name: (tensor, masks.get(id(tensor), 1.0)) for name, tensor in named}


def _rescaled(
    one: TensorScale,
    old: tuple[Tensor, float],
    new: tuple[Tensor, float],
    scaling: Scaling,
    behind_batchnorm: bool,
) -> TensorScale:
    """Rates go with 1/(m_in·m_ρ), SGD's with m_out too; the forward factor is in the graph and stays."""
    table = one.role == "embedding"
    fan_in = 1.0 if old[0].ndim < 2 else _fan_in(new[0], table) / _fan_in(old[0], table)
    fan_out = _fan_out(new[0], table) / _fan_out(old[0], table)
    density = (new[1] / old[1]) ** scaling.density_exponent
    realised = dataclasses.replace(
        one, m_in=one.m_in * fan_in, m_out=one.m_out * fan_out, m_rho=one.m_rho * density
    )
    if scaling.parameterization == "sp":
        return realised
    if one.role != "readout":
        realised = dataclasses.replace(realised, adam_eps=one.adam_eps / fan_out)
    if behind_batchnorm and one.adam_lr == one.sgd_lr == 1.0:
        return realised
    rho = density if scaling.parameterization == "supar" else 1.0
    if one.role in _MATRICES:
        adam, sgd, variance = 1 / (fan_in * rho), fan_out / (fan_in * rho), 1 / (fan_in * rho)
    elif one.role == "readout":
        adam, sgd, variance = 1 / rho, fan_in / rho, 1 / rho
    else:
        adam, sgd, variance = 1.0, fan_out, 1.0
    return dataclasses.replace(
        realised,
        init_std=one.init_std * variance**0.5,
        adam_lr=one.adam_lr * adam,
        sgd_lr=one.sgd_lr * sgd,
    )


def _fan_in(tensor: Tensor, table: bool) -> int:
    return tensor.shape[0] if table else prod(tensor.shape[1:])


def _fan_out(tensor: Tensor, table: bool) -> int:
    if tensor.ndim < 2:
        return tensor.numel()
    return tensor.shape[1] if table else tensor.shape[0]


def _plan(plan: Plan, result: nn.Module, flops: int) -> Plan | None:
    """The plan with every size counted, or None where one cannot be told."""
    present = _tensors(result)
    layers = [_layer(layer, present) for layer in plan.layers]
    told = [layer for layer in layers if layer is not None]
    shapes = {layer.weight: (layer.shape, new.shape) for layer, new in zip(plan.layers, told, strict=False)}
    if len(told) < len(plan.layers):
        return None
    groups = [_group(group, shapes) for group in plan.groups]
    kept = [group for group in groups if group is not None]
    if len(kept) < len(plan.groups):
        return None
    return dataclasses.replace(
        plan,
        options=dataclasses.replace(plan.options, pattern=_pattern(plan, result)),
        flops=PlanFlops(dense=plan.flops.dense, sparse=flops),
        groups=tuple(kept),
        layers=tuple(told),
    )


def _pattern(plan: Plan, result: nn.Module) -> str:
    """The pattern, where taking units out left it whole in every mask; else unstructured."""
    pattern = parse_pattern(plan.options.pattern)
    planned = {tensor.fqn for layer in plan.layers for tensor in layer.tensors if tensor.masked}
    masks = [entry.mask for fqn, entry in masked_parameters(result).items() if fqn in planned]
    holds = all(
        pattern.refusal(mask.shape) is None and bool(pattern.present(mask).matches(mask).all())
        for mask in masks
    )
    return pattern.name if holds else "unstructured"


def _layer(layer: PlanLayer, present: Mapping[str, tuple[Tensor, float]]) -> PlanLayer | None:
    if not layer.tensors or any(tensor.fqn not in present for tensor in layer.tensors):
        return None
    tensors = tuple(_tensor(tensor, *present[tensor.fqn]) for tensor in layer.tensors)
    by_part = {tensor.part: tensor for tensor in tensors}
    first, last = by_part.get("u", tensors[0]), by_part.get("v", tensors[-1])
    shape = (last.shape[0], *first.shape[1:])
    nnz = sum(tensor.nnz for tensor in tensors)
    masked = [tensor for tensor in tensors if tensor.masked]
    size = sum(prod(tensor.shape) for tensor in masked)
    return dataclasses.replace(
        layer,
        tensors=tensors,
        shape=shape,
        nnz=nnz,
        density=sum(tensor.nnz for tensor in masked) / size if size else layer.density,
        width=layer.width * shape[0] / layer.shape[0],
        flops=layer.flops * nnz // layer.nnz if layer.nnz else 0,
        rank=by_part["u"].shape[0] if "u" in by_part else layer.rank,
    )


def _tensor(tensor: PlanTensor, found: Tensor, density: float) -> PlanTensor:
    nnz = round(density * found.numel())
    return dataclasses.replace(tensor, shape=tuple(found.shape), nnz=nnz)


def _group(
    group: PlanGroup, shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> PlanGroup | None:
    """The group at the size of a dimension that is its alone; a pinned one is what it was."""
    if group.pinned is not None:
        return group
    for member in group.members:
        name, _, rest = member.rpartition("[")
        axis = int(rest[:-1])
        if name in shapes and shapes[name][0][axis] == group.width * group.granularity:
            return dataclasses.replace(group, width=shapes[name][1][axis] // group.granularity)
    return None
