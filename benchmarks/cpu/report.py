"""The tables, in the document and in files of their own, and the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cpu import plots, targets
from benchmarks.cpu.cells import INT8, PEER, Cell
from benchmarks.cpu.results import Row, machines, rows, slower
from benchmarks.study.document import NOT_RUN, refresh, table
from benchmarks.study.ledger import Ledger

NETWORKS = ("resnet50", "bert", "small")
_MOST_SLOWER = 12
_CEILING = ["ceiling", "least ms", "reached"]


def write(ledger: Ledger[Cell], folder: Path, document: Path | None) -> dict[str, Any]:
    """Writes the plot, `tables.md` and the tables of the document; returns what was missed."""
    tables = {
        "machine": machine_table(ledger),
        "linear": linear_table(ledger),
        "grid": grid_table(ledger),
        "resnet50": network_table(ledger, "resnet50"),
        "bert": network_table(ledger, "bert"),
        "small": network_table(ledger, "small"),
        "iso": iso_table(ledger),
        "bytes": bytes_table(ledger),
        "slower nodes": slower_table(ledger),
    }
    plots.speedups(rows(ledger, "grid"), rows(ledger, "grid", PEER), folder / "grid.png")
    text = "\n\n".join(f"## {name}\n\n{content}" for name, content in tables.items())
    (folder / "tables.md").write_text(f"# Speed on a CPU: all tables\n\n{text}\n", encoding="utf-8")
    if document is not None:
        refresh(document, tables)
    return {
        "machine": {str(count): found.to_json() for count, found in machines(ledger).items()},
        "slower_than_dense": [_place(row) for part in ("grid", *NETWORKS) for row in _losing(ledger, part)],
        "slower_nodes": [{**_place(row), **node} for row, node in slower(ledger, NETWORKS)],
    }


def machine_table(ledger: Ledger[Cell]) -> str:
    """The ceilings by threads: a row a number of threads."""
    lines = []
    for threads, found in sorted(machines(ledger).items()):
        loads = "–" if found.loads is None else f"{found.loads:.1f}"
        sizes = (threads * (16 << 10), threads * (384 << 10), 4 << 20, 256 << 20)
        bandwidths = [f"{found.bandwidth(size):.0f}" for size in sizes]
        lines.append([str(threads), f"{found.peak:.0f}", loads, *bandwidths, found.how])
    head = ["threads", "FMA, GFLOP/s", "loads of a register, 10⁹/s", "L1, GB/s", "L2", "L3", "memory", "how"]
    return table(head, lines)


def linear_table(ledger: Ledger[Cell]) -> str:
    """Single layers in the layout of their mask."""
    lines = []
    for row in rows(ledger, "linear"):
        limits = targets.LAYERS.get((row.cell.model, row.cell.pattern, row.sparsity, row.batch))
        lines.append(
            [
                f"{row.cell.model.replace('x', '→')}, {row.sparsity:.0%}, {row.cell.pattern}",
                str(row.batch),
                _microseconds(row.values["dense_ms"]),
                _microseconds(row.values["sparse_ms"]),
                *_speedup(row, limits),
                *_ceiling(row),
            ]
        )
    head = ["layer", "batch", "dense µs", "sparse µs", "speedup", "floor / goal", "met", *_CEILING]
    return table(head, lines)


def grid_table(ledger: Ledger[Cell]) -> str:
    """One layer over sparsities, batch sizes and threads, beside the peer where it was measured."""
    peer, lines = _peers(ledger, "grid"), []
    for row in rows(ledger, "grid"):
        beside = peer.get(row.place)
        over = None if beside is None else row.speedup / beside.speedup
        lines.append(
            [
                f"{row.sparsity:.0%}, {_threads(row)}{_tuned(row)}",
                str(row.batch),
                _microseconds(row.values["dense_ms"]),
                _microseconds(row.values["sparse_ms"]),
                _times(row),
                "–" if beside is None else _times(beside),
                "–" if over is None else f"{over:.2f}",
                _met_in_grid(row.speedup, over),
                str(row.values["layout"]),
                *_ceiling(row),
            ]
        )
    head = ["zeros, threads", "batch", "dense µs", "sparse µs", "speedup", "DeepSparse", "ours over it"]
    return table([*head, "met", "layout", *_CEILING], lines)


def network_table(ledger: Ledger[Cell], part: str) -> str:
    """Whole networks: ours, the peer, and dense int8 where they were measured."""
    peer, lines = _peers(ledger, part), []
    for row in rows(ledger, part):
        limits = targets.NETWORKS.get(row.place[:4])
        beside = peer.get(row.place)
        lines.append(
            [
                f"{row.cell.model}, {row.sparsity:.0%}, {_threads(row)}{_tuned(row)}",
                str(row.batch),
                f"{row.values['dense_ms']:.1f}",
                f"{row.values['sparse_ms']:.1f}",
                *_speedup(row, limits or (targets.NEVER_SLOWER, 1.0)),
                "–" if beside is None else _times(beside),
                _count(row.values["layouts"]),
                *_ceiling(row),
            ]
        )
    lines += [_int8_line(row) for engine in INT8 for row in rows(ledger, part, engine)]
    head = ["network", "batch", "dense ms", "sparse ms", "speedup", "floor / goal", "met", "DeepSparse"]
    return table([*head, "nodes", *_CEILING], lines)


def _int8_line(row: Row) -> list[str]:
    name = f"{row.cell.model}, dense {row.cell.engine.replace('-', ', ')}, {_threads(row)}"
    times = [f"{row.values[key]:.1f}" for key in ("dense_ms", "sparse_ms")]
    return [name, str(row.batch), *times, _times(row), *["–"] * 7]


def iso_table(ledger: Ledger[Cell]) -> str:
    """Sparse networks of equal FLOPs over their dense originals."""
    lines = []
    for row in rows(ledger, "iso"):
        limits = targets.ISO.get(row.cell.pattern)
        ratio = 1 / row.speedup
        low, high = (1 / bound for bound in reversed(row.values["range"]))
        lines.append(
            [
                f"{row.cell.model}, {row.cell.pattern}, {_threads(row)}{_tuned(row)}",
                f"{row.values['flops_ratio']:.4f}",
                f"{row.values['dense_ms']:.1f}",
                f"{row.values['sparse_ms']:.1f}",
                f"{ratio:.2f} ({low:.2f}–{high:.2f})",
                _limits(limits),
                targets.judged(ratio, limits, least=False),
                _count(row.values["layouts"]),
                *_ceiling(row),
            ]
        )
    head = ["network, mask", "FLOPs ratio", "dense ms", "sparse ms", "time ratio", "at most / goal", "met"]
    return table([*head, "nodes", *_CEILING], lines)


def bytes_table(ledger: Ledger[Cell]) -> str:
    """Bytes of sparse layers over their dense ones: a row a layout and number type."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows(ledger, "bytes"):
        key = (row.cell.model, row.cell.pattern, row.values["layout"], row.values["dtype"])
        groups.setdefault(key, []).append(row)
    lines = []
    for (model, pattern, layout, dtype), found in groups.items():
        first = min(found, key=lambda row: row.batch)
        file = float(first.values["file"])
        verdicts = [targets.judged(file, targets.BYTES, least=False)]
        shares = [f"{file:.3f}"]
        for kind in ("memory", "mapped"):
            one = first.values[kind]
            more = max((row.values[kind] or 0.0 for row in found if row is not first), default=None)
            shares += [_share(one), _share(more)]
            most = max(one or 0.0, more or 0.0)
            verdicts.append(targets.judged(most, targets.BYTES if most else None, least=False))
        name = f"{model}, {pattern}{'' if layout == 'chosen' else f', {layout}'}, {dtype}"
        lines.append([name, *shares, _limits(targets.BYTES), *verdicts])
    head = ["weights, 90 %", "file", "memory, batch 1", "larger", "external data, batch 1", "larger"]
    return table([*head, "at most / goal", "file", "memory", "external data"], lines)


def slower_table(ledger: Ledger[Cell]) -> str:
    """Nodes that were lowered and took longer than the same products of the dense file."""
    lines = [
        [
            f"{row.cell.model}, {row.sparsity:.0%}, {_threads(row)}",
            str(row.batch),
            str(node["node"]),
            "×".join(map(str, node["shape"])),
            str(node["columns"]),
            str(node["layout"]),
            f"{node['us']:.0f}",
            f"{node['dense_us']:.0f}",
        ]
        for row, node in slower(ledger, NETWORKS)[:_MOST_SLOWER]
    ]
    head = ["network", "batch", "node", "weight", "columns", "layout", "sparse µs", "dense µs"]
    if lines:
        return table(head, lines)
    measured = any(rows(ledger, part) for part in NETWORKS)
    return "No sparse node took longer than its dense self." if measured else NOT_RUN


def _peers(ledger: Ledger[Cell], part: str) -> dict[tuple[str, str, float, int, int], Row]:
    return {row.place: row for row in rows(ledger, part, PEER)}


def _losing(ledger: Ledger[Cell], part: str) -> list[Row]:
    return [row for row in rows(ledger, part) if row.speedup < targets.NEVER_SLOWER]


def _place(row: Row) -> dict[str, Any]:
    about = {"model": row.cell.model, "pattern": row.cell.pattern, "sparsity": row.sparsity}
    return about | {"batch": row.batch, "threads": row.cell.threads, "speedup": row.speedup}


def _met_in_grid(speedup: float, over: float | None) -> str:
    missed = ["dense"] * (speedup < targets.NEVER_SLOWER)
    missed += ["DeepSparse"] * (over is not None and over < targets.OVER_PEER)
    return f"**missed: {', '.join(missed)}**" if missed else "yes"


def _speedup(row: Row, limits: tuple[float, float] | None) -> Sequence[str]:
    return _times(row), _limits(limits), targets.judged(row.speedup, limits)


def _times(row: Row) -> str:
    low, high = row.values["range"]
    return f"{row.speedup:.2f}× ({low:.2f}–{high:.2f})"


def _limits(limits: tuple[float, float] | None) -> str:
    return "–" if limits is None else f"{limits[0]:g} / {limits[1]:g}"


def _ceiling(row: Row) -> list[str]:
    if row.ceiling is None or row.reached is None:
        return ["–"] * 3
    share = "" if row.ceiling.share > 0.995 else f" ({row.ceiling.share:.0%} of it)"
    return [f"{row.ceiling.resource}{share}", f"{1e3 * row.ceiling.seconds:.3g}", f"{row.reached:.0%}"]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(layouts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {layout}" for layout, count in layouts.items())


def _microseconds(milliseconds: float) -> str:
    return f"{1e3 * milliseconds:,.0f}"


def _tuned(row: Row) -> str:
    return ", tuned" if row.cell.tune else ""


def _threads(row: Row) -> str:
    return f"{row.cell.threads} thread{'s' if row.cell.threads > 1 else ''}"
