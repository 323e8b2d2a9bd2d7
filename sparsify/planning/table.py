"""The plan as rows of text, for whoever draws the table."""

from __future__ import annotations

from sparsify.planning.schema import Plan

COLUMNS = (
    *("layer", "kind", "role", "family", "shape", "width", "branches", "rank", "density"),
    *("MFLOPs", "dense MFLOPs", "why"),
)


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """Returns one row of text a layer, in the order of `COLUMNS`, and a last one with the totals."""
    body = [
        (
            layer.fqn,
            layer.kind,
            layer.role,
            layer.family,
            "x".join(str(extent) for extent in layer.shape),
            f"{layer.width:.3g}",
            str(layer.branches),
            str(layer.rank),
            f"{layer.density:.4f}",
            f"{layer.flops / 1e6:.3f}",
            f"{layer.dense_flops / 1e6:.3f}",
            layer.reason,
        )
        for layer in plan.layers
    ]
    flops = plan.flops
    total = (
        *("total", "", "", plan.options.family, "", "", "", "", f"{plan.density:.4f}"),
        *(f"{flops.sparse / 1e6:.3f}", f"{flops.dense / 1e6:.3f}", f"ratio {flops.ratio:.5f}"),
    )
    return [*body, total]
