"""What sparse training costs over plain training: steps, topology updates, memory.

    python -m benchmarks.training_cost [--models lenet,resnet,gpt] [--seconds 12] [--output PATH]

A step of the masked model is compared with a step of the same model without masks, one thread, in alternating
blocks of steps; the ratio is the median over pairs of blocks, first under static masks and then over whole
cycles of each method, updates included. The time of an update is that of the algorithm at steps where one is
due, in plain steps. Seconds are those of the processor. Memory is the peak of a process that trains a stack
of large linear layers, over that of the same without masks. Writes PATH.json and PATH.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from benchmarks.study.environment import environment
from benchmarks.study.models import LeNet, ResNet
from benchmarks.supar.gpt import GPT, GPTShape
from sparsify import dst
from sparsify.masks import parse_pattern, set_mask

METHODS = ("static", "set", "rigl", "srigl", "sparse-momentum", "gmp")
EVERY = 100
DENSITY = 0.1


@dataclass(frozen=True)
class Case:
    """A model, its optimizer and a batch."""

    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterator[nn.Parameter]], optim.Optimizer]
    batch: Callable[[], tuple[Tensor, Tensor]]
    block: int


def _sgd(parameters: Iterator[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _images(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))


def _text() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(256, (32, 65))
    return tokens[:, :-1], tokens[:, 1:]


CASES: dict[str, Case] = {
    "lenet": Case(LeNet, _sgd, lambda: _images(100), 50),
    "resnet": Case(lambda: ResNet(16), _sgd, lambda: _images(128), 5),
    "gpt": Case(lambda: GPT(GPTShape()), lambda p: optim.AdamW(p, lr=1e-4), _text, 5),
}


def masked(model: nn.Module, method: str, density: float = DENSITY) -> nn.Module:
    """Masks on all linear layers and convolutions but the first and the last."""
    pattern = parse_pattern("fan-in" if method == "srigl" else "unstructured")
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    chosen = layers if isinstance(model, LeNet) else layers[1:-1]
    for layer in chosen:
        shape = layer.weight.shape
        mask = pattern.random(shape, pattern.count(shape, density))
        set_mask(layer, "weight", torch.ones_like(mask) if method == "gmp" else mask)
    return model


class Trainer:
    """A model with its loop; counts what the algorithm's updates take."""

    def __init__(self, case: Case, method: str | None) -> None:
        torch.manual_seed(0)
        model = case.model()
        self.model = model if method is None else masked(model, method)
        self.optimizer = case.optimizer(self.model.parameters())
        # Many batches of noise: a model that fits its data has denormal gradients, which cost more.
        self.data = [case.batch() for _ in range(48)]
        self.steps = 0
        self.updates: list[float] = []
        if method is not None:
            options: dict[str, Any] = {"pattern": "fan-in"} if method == "srigl" else {}
            options |= {"target": DENSITY} if method == "gmp" else {}
            options |= {"start_fraction": 0.0, "stop_fraction": 1.0} if method == "gmp" else {}
            self.algorithm = dst.make(
                method, self.model, self.optimizer, total_steps=40 * EVERY, update_every=EVERY, **options
            )
            inner = self.algorithm.after_step
            self.algorithm.after_step = lambda: self._timed(inner)  # type: ignore[method-assign]

    def _timed(self, work: Callable[[], None]) -> None:
        start = time.process_time()
        work()
        if self.algorithm.step % EVERY == 0:
            self.updates.append(time.process_time() - start)

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        start = time.process_time()
        for _ in range(steps):
            inputs, targets = self.data[self.steps % len(self.data)]
            self.optimizer.zero_grad()
            outputs = self.model(inputs)
            F.cross_entropy(outputs.flatten(0, -2), targets.flatten()).backward()
            self.optimizer.step()
            self.steps += 1
        return time.process_time() - start


def alternating(plain: Trainer, other: Trainer, block: int, seconds: float) -> tuple[float, float]:
    """Median ratio of blocks, other over plain, and the median seconds of a plain step."""
    plain.run(max(3, block // 2))
    other.run(max(3, block // 2))
    ratios, steps, until = [], [], time.process_time() + seconds
    while len(ratios) < 5 or time.process_time() < until:
        if len(ratios) % 2:
            second, first = other.run(block), plain.run(block)
        else:
            first, second = plain.run(block), other.run(block)
        ratios.append(second / first)
        steps.append(first / block)
    return statistics.median(ratios), statistics.median(steps)


def measure(name: str, methods: list[str], seconds: float) -> list[dict[str, Any]]:
    """One row a method."""
    torch.set_num_threads(1)
    # The C library returns memory to the system until something large was freed, as after an evaluation; new
    # pages at every step would be measured with it.
    torch.ones(7_000_000).sum()
    case, rows = CASES[name], []
    for method in methods:
        plain, other = Trainer(case, None), Trainer(case, method)
        static = method == "static"
        ratio, step = alternating(plain, other, case.block if static else EVERY, seconds)
        row: dict[str, Any] = {"model": name, "method": method, "step_ms": round(1e3 * step, 3)}
        row["step_ratio"] = round(ratio, 4)
        if not static:
            row["update_steps"] = round(statistics.median(other.updates) / step, 2)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def peak(method: str) -> dict[str, float]:
    """Peak memory of this process, in bytes, after three steps with an update at each but the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(16)))
    weights = sum(param.numel() for param in model.parameters())
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if method != "plain":
        pattern = parse_pattern("fan-in" if method == "srigl" else "unstructured")
        for layer in model:
            mask = pattern.random(layer.weight.shape, pattern.count(layer.weight.shape, DENSITY))
            set_mask(layer, "weight", torch.ones_like(mask) if method == "gmp" else mask)
        options: dict[str, Any] = {"pattern": "fan-in"} if method == "srigl" else {}
        options |= {"target": DENSITY} if method == "gmp" else {}
        dst.make(method, model, optimizer, total_steps=9, update_every=1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 1024)).square().mean().backward()
        optimizer.step()
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "weights": weights}


def memory(methods: list[str]) -> list[dict[str, Any]]:
    """Peak over plain training, in bytes a weight; weights and masks alone are 4 + 1."""
    found: dict[str, dict[str, float]] = {}
    for method in ["plain", *methods]:
        command = [sys.executable, "-m", "benchmarks.training_cost", "--peak-of", method]
        found[method] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    base = found["plain"]
    return [
        {
            "method": method,
            "bytes_a_weight": round((found[method]["peak"] - base["peak"]) / base["weights"], 2),
        }
        for method in methods
    ]


def table(rows: list[dict[str, Any]], memories: list[dict[str, Any]]) -> str:
    """The results as markdown."""
    lines = [
        "| model | method | plain step, ms | step ratio | update, plain steps |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row["model"], row["method"], f"{row['step_ms']:.2f}", f"{row['step_ratio']:.3f}")
        lines.append(f"| {' | '.join(cells)} | {row.get('update_steps', '–')} |")
    if memories:
        lines += ["", "| method | peak over plain training, bytes a weight |", "|---|---|"]
        lines += [f"| {row['method']} | {row['bytes_a_weight']} |" for row in memories]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seconds", type=float, default=12.0, help="of each comparison")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print(json.dumps(peak(args.peak_of)))
        return
    methods = args.methods.split(",")
    rows = [row for name in args.models.split(",") if name for row in measure(name, methods, args.seconds)]
    memories = [] if args.no_memory else memory(methods)
    text = table(rows, memories)
    print(text)
    if args.output is not None:
        about = {"environment": environment(), "density": DENSITY, "update_every": EVERY}
        args.output.with_suffix(".json").write_text(
            json.dumps(about | {"steps": rows, "memory": memories}, indent=1) + "\n"
        )
        args.output.with_suffix(".md").write_text(
            "# Cost of sparse training\n\n`python -m benchmarks.training_cost`: " + _MEANING + "\n\n" + text
        )


_MEANING = (
    "ratio of a step to one of the same model without masks (density 0.1, one thread, processor time in "
    "alternating blocks; for dynamic methods over whole cycles of 100 steps, update included), time of an "
    "update in plain steps, and peak memory over plain training, where weights are 4 bytes and masks 1."
)


if __name__ == "__main__":
    main()
