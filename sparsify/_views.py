"""How each command's JSON object looks as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify._console import Output

_MOST_NODES = 40


def _refusals(out: Output, refusals: Sequence[Mapping[str, str]]) -> None:
    if refusals:
        rows = [(row["fqn"], row["rule"], row["reason"]) for row in refusals]
        out.table("left as they are", ("layer", "rule", "reason"), rows)


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def inspect(out: Output, data: Mapping[str, Any]) -> None:
    """Shows what is in a model file."""
    if data["kind"] == "onnx":
        _inspect_onnx(out, data)
        return
    columns = ("layer", "kind", "role", "weight", "density", "MFLOPs dense")
    rows = [
        (row["fqn"], row["kind"], row["role"], _shape(row["shape"]), row["density"], row["flops"] / 1e6)
        for row in data["layers"]
    ]
    title = f"{data['file']}: {data['parameters']:,} parameters, {data['nonzero']:,} non-zero"
    out.table(title, columns, rows)
    if data["masks"]:
        masks = data["masks"]
        planned = masks["planned_density"]
        ahead = planned is not None and masks["density"] > planned * 1.001
        out.line(
            f"masks: {masks['pattern']}, density {masks['density']:.4f}"
            + (f", to be pruned to {planned:.4f}" if ahead else "")
        )
    groups = [
        (
            row["id"],
            row["size"],
            row["granularity"],
            row["pinned"] or "",
            ", ".join(row["members"][:4]) + _more(row),
        )
        for row in data["groups"]
    ]
    out.table("width groups", ("group", "size", "step", "pinned because", "members"), groups)
    _refusals(out, data["refusals"])


def _inspect_onnx(out: Output, data: Mapping[str, Any]) -> None:
    rows = [
        (row["node"], row["op"], _shape(row["shape"]), row["density"], row["note"]) for row in data["layers"]
    ]
    title = f"{data['file']}: {data['parameters']:,} parameters"
    out.table(title, ("node", "operator", "weight", "density", "note"), rows)


def _more(row: Mapping[str, Any]) -> str:
    rest = len(row["members"]) - 4
    return f" and {rest} more" if rest > 0 else ""


def doctor(out: Output, data: Mapping[str, Any]) -> None:
    """Shows the checks of the installation."""
    rows = [
        (row["name"], "ok" if row["ok"] else "PROBLEM", row["detail"], row.get("advice") or "")
        for row in data["checks"]
    ]
    out.table("installation", ("check", "state", "found", "what to do"), rows)


def transform(out: Output, data: Mapping[str, Any]) -> None:
    """Shows what a transformation made of every layer."""
    columns = ("layer", "kind", "family", "weight", "density", "width", "MFLOPs", "parts")
    rows = [
        (
            row["fqn"],
            row["kind"],
            row["family"],
            _shape(row["shape"]),
            row["density"],
            row["width"],
            row["flops"] / 1e6,
            _parts(row),
        )
        for row in data["layers"]
    ]
    out.table(f"plan, masks {data['pattern']}", columns, rows)
    _refusals(out, data["refusals"])
    flops, parameters = data["flops"], data["parameters"]
    out.line(
        f"FLOPs: {flops['dense'] / 1e6:,.2f}M dense, {flops['sparse'] / 1e6:,.2f}M sparse, "
        f"ratio {flops['ratio']:.4f}"
    )
    out.line(
        f"parameters: {parameters['dense']:,} dense, {parameters['stored']:,} stored, "
        f"{parameters['nonzero']:,} non-zero"
    )
    if data["scaling"]:
        scaling = data["scaling"]
        out.line(
            f"scaling: {scaling['parameterization']}, density exponent {scaling['density_exponent']:g}, "
            f"relative to {scaling['base'] or 'the given model'}"
        )
    if data.get("preserve"):
        _preserved(out, data["preserve"])
    if data["output"]:
        out.line(f"written: {data['output']}")


def _preserved(out: Output, data: Mapping[str, Any]) -> None:
    """Says how far from the dense model the start is."""
    rows = [
        (row["fqn"], row["relative_error"], "" if row["kept"] is None else row["kept"])
        for row in data["layers"]
    ]
    out.table("kept weights", ("layer", "‖W−Ŵ‖/‖W‖", "share kept"), rows)
    outputs = data["outputs"]
    if outputs:
        out.line(
            f"outputs at the start: at most {outputs['max_abs']:.3g} from the dense model's "
            f"(relative {outputs['relative']:.3g})"
        )


def _parts(row: Mapping[str, Any]) -> str:
    """Branches or rank of a layer, and the nonlinearity in them; empty where it is one weight."""
    inside = "" if row["nonlinearity"] == "none" else f", {row['nonlinearity']}"
    if row["rank"]:
        return f"rank {row['rank']}{inside}"
    return f"{row['branches']} branches{inside}" if row["family"] == "parallel" else ""


def finetune(out: Output, data: Mapping[str, Any]) -> None:
    """Shows the metrics of a training run."""
    out.table("result", ("metric", "value"), list(data["metrics"].items()))
    out.line(f"density of the masked weights: {data['density']:.4f}")
    if data["flops"] is not None and data["flops_planned"]:
        share = data["flops"] / data["flops_planned"]
        out.line(f"FLOPs with the masks as they are: {data['flops']:,}, {share:.4g} times the planned ones")
    out.line(f"written: {data['output']}")
    if data["checkpoints"]:
        out.line(f"checkpoints, log and plot: {data['checkpoints']}")


def lower(out: Output, data: Mapping[str, Any]) -> None:
    """Shows what became of every node."""
    rows = [
        (row["node"], row["op"], _shape(row["shape"] or ()), row["density"], row["decision"], row["reason"])
        for row in data.get("layers", [])
    ]
    if rows:
        out.table("nodes", ("node", "operator", "weight", "density", "decision", "reason"), rows)
    if data.get("attention"):
        _attention(out, data["attention"])
    nodes = data["nodes"]
    out.line(f"{nodes['sparse']} sparse and {nodes['dense']} dense nodes, {data['bytes']:,} bytes")
    together = [row["chain"] for row in data.get("layers", []) if row.get("chain")]
    if together:
        out.line(f"{len(together)} of the sparse ones run together, as {len(set(together))} node(s)")
    out.line(f"largest absolute error: {data['max_abs_error']:.2e}")
    if data.get("what_if"):
        _what_if(out, data["what_if"])
    if data["output"]:
        out.line(f"written: {data['output']}" + (" (its weights were cut)" if data.get("what_if") else ""))
        for name in data["data_files"]:
            out.line(f"its weights are in {name} beside it: keep both files together")


def _attention(out: Output, entries: Sequence[Mapping[str, Any]]) -> None:
    """Counts the attentions by what became of them, naming the first of each."""
    kinds: dict[tuple[bool, str], list[str]] = {}
    for entry in entries:
        kinds.setdefault((entry["fused"], entry["reason"]), []).append(entry["node"])
    for (fused, reason), nodes in kinds.items():
        became = "fused" if fused else "left as it was"
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        out.line(f"attention {became}: {nodes[0]}{more} ({reason})")


def _what_if(out: Output, data: Mapping[str, Any]) -> None:
    """Shows what imposed sparsity would gain."""
    rows = [
        (
            ", ".join(f"{name} {_shape(shape)}" for name, shape in row["inputs"].items()),
            data["threads"],
            row["dense_ms"],
            row["lowered_ms"],
            row["speedup"],
        )
        for row in data["results"]
    ]
    title = f"with {data['sparsity']:.0%} of the weights cut, {data['pattern']}"
    if rows:
        kind = "estimated " if data["estimated"] else ""
        out.table(title, ("inputs", "threads", f"{kind}dense ms", f"{kind}sparse ms", "speedup"), rows)
    else:
        out.line(f"{title}: no layer would be faster sparse")
    out.line(data["note"])


def bench(out: Output, data: Mapping[str, Any]) -> None:
    """Shows latencies beside the baseline's."""
    columns = ("model", "batch", "threads", "p50 ms", "p90 ms", "p99 ms", "std ms", "examples/s", "speedup")
    rows = []
    for row in data["results"]:
        latency = row["latency_ms"]
        cells = (
            latency["p50"],
            latency["p90"],
            latency["p99"],
            latency["std"],
            row["throughput"],
            row["speedup"],
        )
        rows.append((row["model"], row["batch"], row["threads"], *cells))
    out.table("latency", columns, rows)
    if data["provider"] == "cuda":
        dense, sparse = (data["precision"][kind] for kind in ("dense", "sparse"))
        out.line(
            f"on the GPU, inputs and outputs in its memory; dense products in {dense}, sparse in {sparse}"
        )
    if data["speedup"] is None:
        out.line(f"no speedup: {data['baseline']['reason']}")
    else:
        out.line(f"smallest speedup over the {data['baseline']['kind']} dense model: {data['speedup']:.2f}")
    if data.get("max_abs_error") is not None:
        out.line(f"largest absolute error: {data['max_abs_error']:.2e}")
    if data.get("profile"):
        _profile(out, data)


def _profile(out: Output, data: Mapping[str, Any]) -> None:
    """Shows the longest nodes beside the dense baseline, and what they reach of the machine."""
    rows = data["profile"]
    columns = ("node", "operator", "weight", "decision", "µs", "share", "dense µs", "GFLOP/s", "roofline")
    cells = [
        (
            row["node"],
            row["op"],
            None if row["shape"] is None else f"{_shape(row['shape'])} @{row['columns']:,}",
            row["decision"],
            row["us"],
            row["share"],
            row["dense_us"],
            row["gflops"],
            None if row["roofline"] is None else f"{row['roofline']:.0%} {row['bound']}",
        )
        for row in rows[:_MOST_NODES]
    ]
    out.table("time by node", columns, cells)
    if len(rows) > _MOST_NODES:
        out.line(f"{len(rows) - _MOST_NODES} shorter nodes are in --format json")
    total = sum(row["us"] for row in rows)
    dense = sum(row["us"] for row in data.get("baseline_profile", ()))
    out.line(f"all nodes: {total:,.0f} µs" + (f", of the baseline {dense:,.0f} µs" if dense else ""))
    ceiling = data["roofline"]
    out.line(f"roofline: {ceiling['gflops']:.0f} GFLOP/s, {ceiling['gbytes']:.0f} GB/s, {ceiling['how']}")
    if data.get("plot"):
        out.line(f"plot: {data['plot']}")


def bench_layer(out: Output, data: Mapping[str, Any]) -> None:
    """Shows one layer's times beside the dense layer's."""
    columns = ("sparsity", "batch", "layout", "kernel", "dense µs", "sparse µs", "speedup", "GFLOP/s")
    keys = ("sparsity", "batch", "layout", "kernel", "dense_us", "sparse_us", "speedup", "gflops")
    out.table("one layer", columns, [tuple(row[key] for key in keys) for row in data["results"]])


def demo(out: Output, data: Mapping[str, Any]) -> None:
    """Shows the demonstration's summary and how to repeat it."""
    from sparsify.demo.report import COLUMNS, advice, summary_rows

    out.table("the same FLOPs, spent sparsely", ("", *COLUMNS.values()), summary_rows(data))
    out.line(advice(data))
    folder = Path(data["files"]["report"]).parent
    out.line(f"report: {data['files']['report']}")
    out.line(f"to repeat it on a model of your own, in {folder}:")
    for command in data["commands"]:
        out.line("  " + command)
