"""Facts written by hand: a plain MLP and a transformer block with heads and a residual stream."""

from sparsify.graph.facts import Facts, LayerFacts, WidthGroup
from sparsify.graph.following import Following
from sparsify.graph.poly import Poly, product

ROWS = 32


def layer(fqn, dims, role="hidden", kind="linear", rows=ROWS, follows="none", norm=None, groups=1):
    dims = tuple(Poly.of(dim) for dim in dims)
    flops = Poly(0) if kind == "embedding" else 2 * rows * product(dims)
    node, weight = fqn.replace(".", "_"), f"{fqn}.weight"
    behind = Following(norm, (), follows)
    return LayerFacts(fqn, kind, role, weight, dims, flops, False, Poly.of(groups), node, behind)


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
    stream = [f"attn.{name}.weight[1]" for name in "qkv"]
    stream += ["attn.out.weight[0]", "fc1.weight[1]", "fc2.weight[0]"]
    d, h, f = Poly.symbol("d"), Poly.symbol("h"), Poly.symbol("f")
    layers = [
        layer("embed", (100, d), "embedding", "embedding"),
        *(layer(f"attn.{name}", (16 * h, d)) for name in ("q", "k", "v")),
        layer("attn.out", (d, 16 * h)),
        layer("fc1", (f, d), follows="gelu"),
        layer("fc2", (d, f)),
        layer("head", (100, d), "readout"),
    ]
    groups = [
        group("d", width, stream, residual=True),
        group("h", heads, ["attn.q.weight[0]", "attn.out.weight[1]"], granularity=16),
        group("f", hidden, ["fc1.weight[0]", "fc2.weight[1]"]),
        group("vocab", 100, ["embed.weight[0]"], pinned="a table"),
    ]
    return facts_of(groups, layers, 2 * 2 * tokens * tokens * 16 * h)


def gpt3_small(tokens, blocks=12, width=768, vocabulary=50257):
    """GPT-3 Small for one text; heads are counted in channels, so that every width factor is possible."""
    d, h, f = Poly.symbol("d"), Poly.symbol("h"), Poly.symbol("f")
    layers = []
    for block in range(blocks):
        layers += [layer(f"{block}.{name}", (h, d), rows=tokens) for name in "qkv"]
        layers.append(layer(f"{block}.out", (d, h), rows=tokens))
        layers.append(layer(f"{block}.fc1", (f, d), rows=tokens, follows="gelu"))
        layers.append(layer(f"{block}.fc2", (d, f), rows=tokens))
    layers.append(layer("head", (vocabulary, d), "readout", rows=tokens))
    groups = [group("d", width, residual=True), group("h", width), group("f", 4 * width)]
    return facts_of(groups, layers, blocks * 2 * 2 * tokens * tokens * h)
