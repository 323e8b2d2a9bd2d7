"""What `sparsify inspect` says of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsify import commands


def inspect_file(
    path: Path, *, inputs: Sequence[str], trust_pickle: commands.Consent, factory: str | None
) -> dict[str, Any]:
    """Describes a model file: an ONNX file's nodes, or a PyTorch model's layers, FLOPs and width groups."""
    if path.suffix in commands.ONNX_SUFFIXES:
        from sparsify.lowering import describe

        return describe(path)
    from sparsify.graph import facts as graph_facts
    from sparsify.masks.module import SparseGraphModule

    model = commands.load_model(path, trust_pickle=trust_pickle, factory=factory)
    traced = commands.traced_from(model, inputs)
    found = graph_facts.facts(traced)
    plan = model.sparsify.plan if isinstance(model, SparseGraphModule) else None
    sizes = {group.id: group.size for group in found.groups}
    density = _densities(model)
    layers: list[dict[str, Any]] = [
        {
            "fqn": layer.fqn,
            "kind": layer.kind,
            "role": layer.role,
            "shape": [int(dim.evaluate(sizes)) for dim in layer.dims],
            "density": density.get(layer.weight, 1.0),
            "flops": int(layer.flops.evaluate(sizes)),
        }
        for layer in found.layers
    ]
    dense_flops = sum(layer["flops"] for layer in layers) + int(found.other_flops.evaluate(sizes))
    parameters = commands.count_parameters(model)
    return {
        "file": str(path),
        "kind": "torch",
        "family": None if plan is None else plan.options.family,
        "masks": _mask_summary(model, plan),
        "parameters": parameters["stored"],
        "nonzero": parameters["nonzero"],
        "flops": dense_flops,
        "layers": layers,
        "groups": graph_facts.describe(found),
        "refusals": [asdict(refusal) for refusal in (*traced.refusals, *found.refusals)],
    }


def _densities(model: Any) -> dict[str, float]:
    """Share of active weights by parameter name, under every name that a tied one has."""
    from sparsify.masks import masked_parameters

    found = {id(entry.param): entry.density for entry in masked_parameters(model).values()}
    names = model.named_parameters(remove_duplicate=False)
    return {name: found[id(parameter)] for name, parameter in names if id(parameter) in found}


def _mask_summary(model: Any, plan: Any) -> dict[str, Any] | None:
    """Pattern and density of the masks as they are, and the planned density; None without masks."""
    from sparsify.masks import masked_parameters, pattern_of

    masks = [entry.mask for entry in masked_parameters(model).values()]
    if not masks:
        return None
    active, size = sum(int(mask.count_nonzero()) for mask in masks), sum(mask.numel() for mask in masks)
    return {
        "pattern": pattern_of(model).name,
        "density": active / size,
        "planned_density": None if plan is None else plan.density,
    }
