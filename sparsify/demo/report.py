"""The demonstration's report: one HTML file with its plots inside, readable offline."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify._console import show

COLUMNS = {"dense": "dense", "sparse": "sparse", "blocks": "sparse, 4×1", "wide": "dense, wide"}
COLORS = {"dense": "#4a6fa5", "sparse": "#d1603d", "blocks": "#6a994e", "wide": "#8a8f98"}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>sparsify demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }}
h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid #ddd }}
td, th:not(:first-child) {{ text-align: right }} th {{ text-align: left; font-weight: 600 }}
td:first-child {{ text-align: left }} pre {{ background: #f5f5f3; padding: 1rem; overflow-x: auto }}
img {{ max-width: 100% }} .note {{ color: #555 }}
</style>
<h1>The same FLOPs, spent sparsely</h1>
<p>A residual CNN for scikit-learn's digits was trained for {steps} steps four times: as it is, as a
Sparse-Wide model of the same FLOPs (RigL masks, SμPar learning rates), as another whose masks are blocks of
four outputs that share an input (4×1), and as a dense model of the wide shape, which costs {cost:.1f}× the
FLOPs and shows what there is to gain. All use the dense model's hyper-parameters. Digits are easy:
differences within the standard errors are chance.</p>
{table}
<p class="note">{advice}</p>
<p class="note">{environment}</p>
<h2>Accuracy while training</h2><img alt="test accuracy against steps" src="{accuracy}">
<h2>Latency in ONNX Runtime, one thread</h2><img alt="latency by batch size" src="{latency}">
<p class="note">Bars are medians, whiskers reach the 90th percentile; each model was timed beside the
dense one in the same process, in alternating blocks of calls.</p>
<h2>What became of every layer</h2>{layers}
<h2>What became of every node</h2>{nodes}
<h2>Do it again, on a model of your own</h2><pre>{commands}</pre>
</html>
"""


def summary_rows(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the summary table: one row a quantity, one column a model."""
    columns = [data["columns"][name] for name in COLUMNS]
    rows: list[tuple[str, list[Any]]] = [
        ("FLOPs an example (millions)", [column["flops"] / 1e6 for column in columns]),
        ("parameters stored", [column["parameters_stored"] for column in columns]),
        ("parameters non-zero", [column["parameters_nonzero"] for column in columns]),
        ("test accuracy (± s. e.)", [_accuracy(column) for column in columns]),
        ("test loss", [column["loss"] for column in columns]),
        ("ONNX file (KiB)", [round(column["file_bytes"] / 1024) for column in columns]),
        ("latency, batch 1 (ms)", [column["latency_ms"]["1"]["p50"] for column in columns]),
        ("latency, batch 64 (ms)", [column["latency_ms"]["64"]["p50"] for column in columns]),
        ("error against PyTorch", [f"{column['max_abs_error']:.1e}" for column in columns]),
    ]
    return [(name, *(show(value) for value in values)) for name, values in rows]


def advice(data: Mapping[str, Any]) -> str:
    """What the latencies say about masks, and what to try next."""
    sparse, blocks = (data["columns"][name]["latency_ms"] for name in ("sparse", "blocks"))
    gains = [sparse[batch]["p50"] / blocks[batch]["p50"] for batch in ("1", "64")]
    return (
        f"Where speed counts, take masks in blocks: --pattern 4x1 ran {gains[0]:.2f} and {gains[1]:.2f} "
        "times as fast as unstructured masks of as many non-zeros (batch 1 and 64). "
        "What a pruned model would gain over its dense self: sparsify lower dense.onnx --what-if 0.9"
    )


def _accuracy(column: Mapping[str, Any]) -> str:
    return f"{column['accuracy']:.2%} ± {column['accuracy_standard_error']:.2%}"


def write_report(path: Path, data: Mapping[str, Any], folder: Path) -> None:
    """Writes the report.

    Args:
        path: HTML file to write.
        data: What `run_demo` found.
        folder: Folder of the run, for the training logs.
    """
    columns = data["columns"]
    layers = [
        (layer["fqn"], layer["family"], "×".join(map(str, layer["shape"])), f"{layer['density']:.3f}")
        for layer in data["layers"]
    ]
    nodes = [(node["node"], node["op"], node["decision"], node["reason"]) for node in data["lowered"]]
    environment = ", ".join(f"{key}: {_flat(value)}" for key, value in data["environment"].items())
    page = PAGE.format(
        steps=data["steps"],
        cost=columns["wide"]["flops"] / columns["dense"]["flops"],
        table=_table(("", *COLUMNS.values()), summary_rows(data)),
        advice=html.escape(advice(data)),
        environment=html.escape(environment),
        accuracy=_accuracy_plot(columns),
        latency=_latency_plot(columns),
        layers=_table(("layer", "family", "weight", "density"), layers),
        nodes=_table(("node", "operator", "decision", "reason"), nodes),
        commands=html.escape("\n".join(data["commands"])),
    )
    path.write_text(page, encoding="utf-8")


def _flat(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _accuracy_plot(columns: Mapping[str, Any]) -> str:
    figure, axes = _figure()
    for name, label in COLUMNS.items():
        steps, values = read_curve(Path(columns[name]["checkpoints"]) / "log.csv", "test_accuracy")
        axes.plot(steps, values, color=COLORS[name], label=label, linewidth=1.8)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("test accuracy")
    axes.legend(frameon=False)
    return _embed(figure)


def read_curve(path: Path, key: str) -> tuple[list[int], list[float]]:
    """Reads one quantity of a training log.

    Returns:
        Steps and values of the rows in which the quantity was measured.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row[key]]
    return [int(row["step"]) for row in rows], [float(row[key]) for row in rows]


def _latency_plot(columns: Mapping[str, Any]) -> str:
    figure, axes = _figure(panels=2)
    for axis, batch in zip(axes, ("1", "64"), strict=True):
        for place, (name, label) in enumerate(COLUMNS.items()):
            latency = columns[name]["latency_ms"][batch]
            spread = [[0.0], [max(0.0, latency["p90"] - latency["p50"])]]
            axis.barh(place, latency["p50"], xerr=spread, color=COLORS[name], height=0.6)
            axis.text(0, place + 0.42, label, fontsize=9, color="#444")
        axis.set_yticks([])
        axis.set_ylim(len(COLUMNS) - 0.4, -0.4)
        axis.set_xlabel(f"ms, batch {batch}")
    return _embed(figure)


def _figure(panels: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, panels)
    for axis in [axes] if panels == 1 else axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _embed(figure: Any) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=144)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
