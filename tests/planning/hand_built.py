"""Facts written by hand: a plain MLP and a transformer block with heads and a residual stream."""

from sparsify.graph.facts import Facts, LayerFacts, WidthGroup
from sparsify.graph.poly import Poly, product

ROWS = 32


def layer(fqn, dims, role="hidden", kind="linear", rows=ROWS):
    dims = tuple(Poly.of(dim) for dim in dims)
    flops = Poly(0) if kind == "embedding" else 2 * rows * product(dims)
    return LayerFacts(fqn, kind, role, f"{fqn}.weight", dims, flops, False, Poly(1), fqn.replace(".", "_"))


def group(name, size, members=(), granularity=1, residual=False, pinned=None):
    return WidthGroup(name, size, granularity, tuple(members), residual, pinned)


def facts_of(groups, layers, other=0):
    parameters = {each.weight: each.dims for each in layers}
    return Facts(tuple(groups), tuple(layers), parameters, (), Poly.of(other), ())


def mlp(hidden=64, inputs=32, classes=10):
    a, b = Poly.symbol("a"), Poly.symbol("b")
    layers = [
        layer("stem", (a, inputs), "input"),
        layer("fc", (b, a)),
        layer("head", (classes, b), "readout"),
    ]
    groups = [
        group("a", hidden),
        group("b", hidden),
        group("in", inputs, ["stem.weight[1]"], pinned="an input"),
    ]
    return facts_of(groups, layers)


def transformer(width=64, heads=4, hidden=256, tokens=32):
    """One pre-norm block with an embedding before it and a readout after it; head size 16."""
    d, h, f = Poly.symbol("d"), Poly.symbol("h"), Poly.symbol("f")
    layers = [
        layer("embed", (100, d), "embedding", "embedding"),
        *(layer(f"attn.{name}", (16 * h, d)) for name in ("q", "k", "v")),
        layer("attn.out", (d, 16 * h)),
        layer("fc1", (f, d)),
        layer("fc2", (d, f)),
        layer("head", (100, d), "readout"),
    ]
    groups = [
        group("d", width, residual=True),
        group("h", heads, granularity=16),
        group("f", hidden),
        group("vocab", 100, ["embed.weight[0]"], pinned="a table"),
    ]
    return facts_of(groups, layers, 2 * 2 * tokens * tokens * 16 * h)
