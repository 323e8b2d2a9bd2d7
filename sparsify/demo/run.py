"""Runs the main job on digits: dense, sparse of the same FLOPs under two kinds of masks, dense and wide."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsify import api, commands
from sparsify._finetune import finetune_file
from sparsify._inspect import inspect_file
from sparsify.archive import wrap
from sparsify.demo.model import DigitsCNN
from sparsify.demo.report import write_report

STEPS = 220
EXAMPLES = 2
TEST_EXAMPLES = 450
TRAINING = ("--optimizer", "sgd", "--lr", "0.1", "--weight-decay", "0.0005", "--batch-size", "64")
OPTIONS: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "batch_size": 64}
SPARSITY = 0.75
BLOCKS = "4x1"
UNTRAINED = "{}-untrained.pt"
ARCHIVES = {"dense": "model.pt", "sparse": "trained.pt2", "blocks": "trained-blocks.pt2", "wide": "wide.pt"}


@dataclass
class Journal:
    """The commands of the run as a user would type them.

    Attributes:
        folder: Folder that the file names are relative to.
        say: Receives a line of talk.
        lines: Command lines, in order.
    """

    folder: Path
    say: Callable[[str], None]
    lines: list[str] = field(default_factory=list)

    def note(self, *words: str) -> None:
        """Records one command and says it."""
        line = shlex.join(("sparsify", *words))
        self.lines.append(line)
        self.say("$ " + line)


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    bench_seconds: float = 2.0,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Trains, rewrites, exports and times; writes models, ONNX files, `summary.json` and `report.html`.

    Args:
        folder: Folder to write into; made if missing.
        seed: Seed of weights, masks and data order.
        steps: Optimizer steps of each of the four trainings.
        bench_seconds: Seconds of timing for each model and setting.
        say: Receives what is going on, line by line.

    Returns:
        `flops_ratio`, `accuracy`, `max_abs_error`, `latency_ms`, `files`, and an entry a column of the table.

    Raises:
        SparsifyError: Whatever a stage raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder, say)
    trained = {"dense": _train_dense(journal, "dense", DigitsCNN, seed, steps)}
    transformed = {
        "sparse": _transform(journal, "sparse.pt2", "unstructured", seed),
        "blocks": _transform(journal, "blocks.pt2", BLOCKS, seed),
    }
    for name in transformed:
        trained[name] = _finetune(journal, f"{name}.pt2", ARCHIVES[name], "rigl", seed, steps)
    widths = _realised_widths(transformed["sparse"])
    trained["wide"] = _train_dense(journal, "wide", lambda: DigitsCNN(widths), seed, steps)
    exported = {
        name: _export(journal, archive, f"{name}.onnx", dense=name not in transformed)
        for name, archive in ARCHIVES.items()
    }
    timed = {name: _bench(journal, f"{name}.onnx", bench_seconds) for name in ("sparse", "blocks", "wide")}
    data = _summary(folder, transformed, trained, exported, timed)
    data["commands"] = journal.lines
    data["steps"] = steps
    data["files"]["report"] = str(folder / "report.html")
    data["files"]["summary"] = str(folder / "summary.json")
    write_report(folder / "report.html", data, folder)
    (folder / "summary.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    return data


def _train_dense(
    journal: Journal, name: str, build: Callable[[], torch.nn.Module], seed: int, steps: int
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = build()
    untrained = UNTRAINED.format(name)
    journal.say(f"building the {name} model: {sum(p.numel() for p in model.parameters()):,} parameters")
    api.save(wrap(api.trace(model, (torch.zeros(EXAMPLES, 1, 8, 8),))), journal.folder / untrained)
    return _finetune(journal, untrained, ARCHIVES[name], "dense", seed, steps)


def _finetune(
    journal: Journal, source: str, output: str, method: str, seed: int, steps: int
) -> dict[str, Any]:
    how = ("--method", method, "--steps", str(steps), *TRAINING, "--seed", str(seed))
    journal.note("finetune", source, "--data", "digits", *how, "-o", output)
    return finetune_file(
        journal.folder / source,
        "digits",
        journal.folder / output,
        OPTIONS | {"method": method, "steps": steps, "seed": seed},
    )


def _transform(journal: Journal, output: str, pattern: str, seed: int) -> dict[str, Any]:
    how = ("--sparsity", str(SPARSITY), *(("--pattern", pattern) if pattern != "unstructured" else ()))
    source = UNTRAINED.format("dense")
    journal.note("transform", source, "-o", output, *how, "--seed", str(seed))
    return commands.transform(
        journal.folder / source,
        journal.folder / output,
        plan_file=None,
        plan_only=False,
        plan_options={"family": "wide", "sparsity": SPARSITY, "pattern": pattern},
        init="scratch",
        parameterization="supar",
        density_exponent=None,
        inputs=(),
        trust_pickle=False,
        factory=None,
        seed=seed,
    )


def _realised_widths(transformed: dict[str, Any]) -> tuple[int, int, int, int]:
    out = {layer["fqn"]: layer["shape"][0] for layer in transformed["layers"]}
    return out["stem.0"], out["block1.conv2"], out["block2.conv2"], out["block3.conv2"]


def _export(journal: Journal, source: str, output: str, *, dense: bool) -> dict[str, Any]:
    journal.note("export", source, "-o", output, *(("--dense",) if dense else ()))
    return commands.export(journal.folder / source, journal.folder / output, dense=dense, inputs=())


def _bench(journal: Journal, model: str, seconds: float) -> dict[str, Any]:
    settings = ("--baseline", "dense.onnx", "--batch", "1,64", "--threads", "1", "--duration", f"{seconds:g}")
    journal.note("bench", model, *settings)
    return commands.bench(
        journal.folder / model,
        baseline=journal.folder / "dense.onnx",
        batches=(1, 64),
        threads=(1,),
        duration=seconds,
    )


def _median(timed: dict[str, Any], model: str, batch: int) -> dict[str, float]:
    for row in timed["results"]:
        if row["model"] == model and row["batch"] == batch:
            latency = row["latency_ms"]
            return {"p50": latency["p50"], "p90": latency["p90"]}
    raise KeyError(f"{model} at batch {batch} was not timed")


def _summary(
    folder: Path,
    transformed: dict[str, dict[str, Any]],
    trained: dict[str, Any],
    exported: dict[str, Any],
    timed: dict[str, Any],
) -> dict[str, Any]:
    columns = {}
    for name, archive in ARCHIVES.items():
        described = inspect_file(folder / archive, inputs=(), trust_pickle=False, factory=None)
        accuracy = trained[name]["metrics"]["accuracy"]
        flops = transformed[name]["flops"]["sparse"] if name in transformed else described["flops"]
        source, side = (timed["sparse"], "baseline") if name == "dense" else (timed[name], "model")
        columns[name] = {
            "flops": flops // EXAMPLES,
            "parameters_stored": described["parameters"],
            "parameters_nonzero": described["nonzero"],
            "accuracy": accuracy,
            "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / TEST_EXAMPLES),
            "loss": trained[name]["metrics"]["loss"],
            "file_bytes": exported[name]["bytes"],
            "latency_ms": {str(batch): _median(source, side, batch) for batch in (1, 64)},
            "max_abs_error": exported[name]["max_abs_error"],
            "checkpoints": trained[name]["checkpoints"],
        }
    return {
        "flops_ratio": transformed["sparse"]["flops"]["ratio"],
        "accuracy": {name: columns[name]["accuracy"] for name in columns},
        "max_abs_error": exported["sparse"]["max_abs_error"],
        "latency_ms": {name: columns[name]["latency_ms"]["1"]["p50"] for name in columns},
        "files": {
            "dense": str(folder / ARCHIVES["dense"]),
            "sparse": str(folder / ARCHIVES["sparse"]),
            "blocks": str(folder / ARCHIVES["blocks"]),
            "onnx_dense": str(folder / "dense.onnx"),
            "onnx_sparse": str(folder / "sparse.onnx"),
            "onnx_blocks": str(folder / "blocks.onnx"),
        },
        "columns": columns,
        "layers": transformed["sparse"]["layers"],
        "nodes": exported["sparse"]["nodes"],
        "lowered": exported["sparse"].get("layers", []),
        "environment": timed["sparse"]["environment"],
    }
