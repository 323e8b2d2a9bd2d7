"""A fingerprint of the model that a plan belongs to: shapes and couplings, not values."""

from __future__ import annotations

import hashlib
import json

from sparsify.graph.facts import Facts


def fingerprint(facts: Facts) -> str:
    """Returns 16 hexadecimal digits that change with any shape, layer, or width group of the model."""
    base = {group.id: group.size for group in facts.groups}
    shapes = {name: [dim.evaluate(base) for dim in dims] for name, dims in facts.parameters.items()}
    layers = [(layer.fqn, layer.kind, [str(dim) for dim in layer.dims]) for layer in facts.layers]
    text = json.dumps([sorted(shapes.items()), layers, sorted(base.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
