"""`sparsify inspect --explain`: where one parameter comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify._console import Output
from sparsify.commands import ONNX_SUFFIXES, Consent, load_model
from sparsify.errors import UserError


def explain(path: Path, fqn: str, *, trust_pickle: Consent, factory: str | None) -> dict[str, Any]:
    """Says where a parameter of a transformed model comes from, or what became of one of the dense model.

    Raises:
        UserError: The file is no model with a record, or neither model has such a parameter.
    """
    from sparsify import api

    if path.suffix in ONNX_SUFFIXES:
        raise UserError(
            f"{path} is an ONNX file; only the .pt2 archive that it was exported from can explain"
        )
    return {"file": str(path)} | api.explain(
        load_model(path, trust_pickle=trust_pickle, factory=factory), fqn
    )


def show(out: Output, data: Mapping[str, Any]) -> None:
    """Shows where parameters come from."""
    for row in data["parameters"]:
        mask, scaling, plan = row["mask"], row["scaling"], row["plan"]
        lines = [
            ("comes from", f"{row['old']} ({row['how']}{', transposed' if row['transposed'] else ''})"),
            ("shape", f"{_shape(row['shape']['old'])} → {_shape(row['shape']['new'])}"),
            ("mask", "none" if mask is None else f"{mask['active']} active, density {mask['density']:.4g}"),
            *((f"width {g['axis']}", _group(g)) for g in row["groups"]),
        ]
        if scaling is not None:
            factors = f"Adam ×{scaling['adam_lr']:.4g}, SGD ×{scaling['sgd_lr']:.4g}"
            lines.append(("learning rate", factors))
            initial = f"std ×{scaling['init_std']:.4g}, forward ×{scaling['forward']:.4g}"
            lines.append(("initial values", initial))
        if plan is not None:
            lines.append(("plan", f"{plan['layer']} is {plan['family']}: {plan['reason']}"))
        if row["ties"]:
            lines.append(("tied to", ", ".join(row["ties"])))
        lines += [("left as it is", f"{one['rule']}: {one['reason']}") for one in row["refusals"]]
        out.table(row["new"], ("", ""), lines)


def _group(group: Mapping[str, Any]) -> str:
    pinned = f", pinned: {group['pinned']}" if group["pinned"] else ""
    return f"{group['id']}: {group['size']} → {group['width']}{pinned}"


def _shape(shape: Sequence[int] | None) -> str:
    return "nothing" if shape is None else "×".join(map(str, shape)) or "one number"
