"""What real sparse training gains on a CPU: linear layers, convolutions and whole training steps.

    python -m benchmarks.sparse_training [--seconds 2] [--threads 1,2] [--parts PARTS]
                                         [--sparselab DIR] [--output docs/results/sparse_training]

Parts are layers, convolutions and models.

A step of a layer is its forward pass and all three gradients (input, weight, bias), as autograd runs it.
A dense layer, an accelerated masked one and, where asked for, sparselab's SparseLinear take turns in blocks
of calls with pauses in between. A step of a model is forward, backward and optimizer, masked and dense
against masked and accelerated. One thread is timed by its processor time, more by the wall clock; medians.
`--sparselab` names a folder that holds that package (`pip install --target DIR sparselab==0.2.2`).
Writes sparse_training.json and README.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import sparsify
from benchmarks.study.environment import environment
from benchmarks.study.models import ResNet
from benchmarks.supar.gpt import GPT, GPTShape
from sparsify.masks import parse_pattern, set_mask

Call = Callable[[], object]
LAYERS = ((768, 3072, 256), (2048, 2048, 128), (192, 768, 2048))
# Batch, input channels, output channels, kernel, stride, height and width.
CONVOLUTIONS = (
    (32, 64, 64, 3, 1, 28),
    (32, 256, 256, 3, 1, 14),
    (16, 128, 256, 3, 2, 28),
    (16, 256, 1024, 1, 1, 14),
    (128, 16, 16, 3, 1, 14),
)
SPARSITIES = (0.8, 0.9, 0.95)
MODELS = ("gpt-192", "gpt-768", "resnet-16", "resnet-64")
MODEL_SPARSITIES = (0.9, 0.95)
_KEPT: list[nn.Module] = []


def mask_layer(layer: nn.Module, sparsity: float) -> None:
    """A random mask of that share of zeros."""
    pattern, shape = parse_pattern("unstructured"), layer.weight.shape
    set_mask(layer, "weight", pattern.random(shape, pattern.count(shape, 1 - sparsity)))


def layer_step(layer: nn.Module, x: Tensor, dy: Tensor) -> Call:
    """Forward and backward; gradients are let go before each step, as zero_grad does."""
    parameters = [x, *layer.parameters()]

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        layer(x).backward(dy)

    return step


def layer_calls(inputs: int, outputs: int, batch: int, sparsity: float, sparselab: Any) -> dict[str, Call]:
    """The contestants, by name."""
    torch.manual_seed(0)
    x, dy = torch.randn(batch, inputs, requires_grad=True), torch.randn(batch, outputs)
    fast = nn.Linear(inputs, outputs)
    mask_layer(fast, sparsity)
    sparsify.accelerate(nn.ModuleList([fast]), min_sparsity=0.0)
    calls = {"dense": layer_step(nn.Linear(inputs, outputs), x, dy), "sparsify": layer_step(fast, x, dy)}
    if sparselab is not None:
        other = sparselab.SparseLinear(inputs, outputs, sparsity=sparsity)
        # It remembers transposed indices by address, so a layer must not be freed before the next is made.
        _KEPT.append(other)
        calls["sparselab"] = layer_step(other, x, dy)
    return calls


def conv_calls(
    batch: int, inputs: int, outputs: int, kernel: int, stride: int, size: int, sparsity: float
) -> dict[str, Call]:
    """The contestants for a convolution, by name."""
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, size, size, requires_grad=True)
    dense, fast = (nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False) for _ in range(2))
    dy = torch.randn_like(dense(x))
    mask_layer(fast, sparsity)
    sparsify.accelerate(nn.ModuleList([fast]), min_sparsity=0.0)
    return {"dense": layer_step(dense, x, dy), "sparsify": layer_step(fast, x, dy)}


def model_of(name: str) -> tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]:
    """A model of the studies, by kind and width, and what makes a batch for it."""
    kind, width = name.split("-")
    if kind == "gpt":
        tokens = torch.randint(256, (32 if width == "192" else 8, 65))
        return GPT(GPTShape(width=int(width))), lambda: (tokens[:, :-1], tokens[:, 1:])
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    return ResNet(int(width)), lambda: (images, labels)


def model_calls(name: str, sparsity: float) -> tuple[dict[str, Call], list[dict[str, Any]]]:
    """Training steps with and without acceleration, and what `accelerate` decided."""
    calls: dict[str, Call] = {}
    decisions: list[dict[str, Any]] = []
    for contestant in ("masked", "sparsify"):
        torch.manual_seed(0)
        model, batch = model_of(name)
        layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        for layer in layers[1:-1] if name.startswith("resnet") else layers[:-1]:
            mask_layer(layer, sparsity)
        if contestant == "sparsify":
            sparsify.accelerate(model, rows=batch()[0].numel())
            decisions = [vars(decision) for decision in sparsify.acceleration_report(model)]
        optimizer = optim.AdamW(model.parameters(), lr=1e-4)

        def step(
            model: nn.Module = model, optimizer: optim.Optimizer = optimizer, batch: Any = batch
        ) -> None:
            inputs, targets = batch()
            optimizer.zero_grad()
            F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten()).backward()
            optimizer.step()

        calls[contestant] = step
    return calls, decisions


def interleaved(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Median milliseconds of each: blocks of calls in turn, a pause and uncounted calls before each."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, until = list(calls), time.monotonic() + seconds * len(calls)
    while time.monotonic() < until or min(map(len, samples.values())) < 6:
        for name in names:
            time.sleep(0.05)
            calls[name]()
            for _ in range(4):
                start = clock()
                calls[name]()
                samples[name].append(clock() - start)
        names.reverse()
    return {name: round(1e3 * statistics.median(found), 3) for name, found in samples.items()}


def measure(threads: int, parts: list[str], seconds: float, sparselab: Any) -> list[dict[str, Any]]:
    """One row for each layer or model and sparsity."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        rows.append({"threads": threads, **row})
        print(
            json.dumps({name: rows[-1][name] for name in ("threads", "of", "sparsity", "ms")}),
            file=sys.stderr,
        )

    for inputs, outputs, batch in LAYERS if "layers" in parts else ():
        for sparsity in SPARSITIES:
            times = interleaved(layer_calls(inputs, outputs, batch, sparsity, sparselab), seconds)
            add(
                {
                    "of": f"{inputs}→{outputs}, batch {batch}",
                    "kind": "layer",
                    "sparsity": sparsity,
                    "ms": times,
                }
            )
    for shape in CONVOLUTIONS if "convolutions" in parts else ():
        batch, inputs, outputs, kernel, stride, size = shape
        of = f"{inputs}→{outputs}, {kernel}×{kernel}/{stride}, {batch} of {size}×{size}"
        for sparsity in SPARSITIES:
            times = interleaved(conv_calls(*shape, sparsity), seconds)
            add({"of": of, "kind": "convolution", "sparsity": sparsity, "ms": times})
    for name in MODELS if "models" in parts else ():
        for sparsity in MODEL_SPARSITIES:
            calls, decisions = model_calls(name, sparsity)
            times = interleaved(calls, seconds)
            add({"of": name, "kind": "model", "sparsity": sparsity, "ms": times, "decisions": decisions})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The results as markdown."""
    lines = []
    for kind, base in (("layer", "dense"), ("convolution", "dense"), ("model", "masked")):
        found = [row for row in rows if row["kind"] == kind]
        if not found:
            continue
        others = [name for name in found[0]["ms"] if name != base]
        head = ["threads", kind, "zeros", f"{base}, ms"]
        for name in others:
            head += [f"{name}, ms", "speedup"]
        if kind == "model":
            head.append("sparse layers")
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for row in found:
            times = row["ms"]
            cells = [str(row["threads"]), row["of"], f"{row['sparsity']:.0%}", f"{times[base]:.2f}"]
            for name in others:
                cells += [f"{times[name]:.2f}", f"{times[base] / times[name]:.2f}×"]
            if kind == "model":
                cells.append(f"{sum(d['sparse'] for d in row['decisions'])} of {len(row['decisions'])}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--parts", default="layers,convolutions,models")
    parser.add_argument("--sparselab", type=Path, help="folder that holds the package")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        if args.sparselab is not None:
            sys.path.insert(0, str(args.sparselab))
        sparselab = importlib.import_module("sparselab") if args.sparselab is not None else None
        print(json.dumps(measure(args.worker, args.parts.split(","), args.seconds, sparselab)))
        return
    rows = [row for threads in args.threads.split(",") for row in _in_process(int(threads), args)]
    text = table(rows)
    print(text)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        about = {**environment(), "load": os.getloadavg(), "rows": rows}
        about.pop("threads_of_a_run")
        (args.output / "sparse_training.json").write_text(json.dumps(about, indent=1) + "\n")
        page = args.output / "README.md"
        start = page.read_text().partition(_MARK)[0] if page.exists() else "# Sparse training on a CPU\n\n"
        page.write_text(start + _MARK + "\n\n" + text)


def _in_process(threads: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows for one number of threads: OpenMP takes it from the environment when a process starts."""
    command = [sys.executable, "-m", "benchmarks.sparse_training", "--worker", str(threads)]
    command += ["--parts", args.parts, "--seconds", str(args.seconds)]
    if args.sparselab is not None:
        command += ["--sparselab", str(args.sparselab)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environ)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


_MARK = "<!-- written by benchmarks.sparse_training -->"

if __name__ == "__main__":
    main()
