"""Sparse models of the same FLOPs as a dense one, timed beside it: do equal FLOPs take equal time?

    python benchmarks/iso_time.py [--model resnet18,vit,gpt2] [--pattern unstructured,4x1] [--sparsity 0.75]
                                  [--batch 1] [--threads 2] [--duration 5] [--tune] [--models FOLDER]
                                  [-o FOLDER]

ResNet-18 and ViT-B/16 (224², 1000 classes), GPT-2 small (128 tokens), random weights: the dense original,
and its Sparse Wide model of the same FLOPs over the whole model, both exported, the sparse one lowered, both
in ONNX Runtime in this process, in alternating blocks. The time ratio is sparse over dense: 1 is iso-time.
With them stands the wide model's own dense export, to show what the zeros save. One JSON object on stdout, a
line a setting on stderr; with -o also a JSON file in which other settings of earlier runs stay.

Exports take minutes for GPT-2, whose wide model has more than 300M parameters. With --models they are kept in
a folder and taken from there the next time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sparsify
from sparsify.archive import wrap
from sparsify.runtime import Session
from sparsify.runtime.environment import environment
from sparsify.runtime.timing import interleave

TOKENS = 128
Array = np.ndarray[Any, np.dtype[Any]]


class ImageLogits(nn.Module):
    """An image classifier, called with pixels alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, 224, 224] → [B, 1000]."""
        logits: torch.Tensor = self.inner(pixel_values).logits
        return logits


class Logits(nn.Module):
    """A language model, called with tokens alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[B, T] → [B, T, vocabulary]."""
        logits: torch.Tensor = self.inner(input_ids, use_cache=False).logits
        return logits


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The dense original with random weights, and inputs of two samples.

    Images come with their classifier: the last state as output would hold the residual stream at its width.
    """
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    if name == "gpt2":
        return Logits(GPT2LMHeadModel(GPT2Config()).eval()), torch.randint(50_000, (2, TOKENS))
    images = torch.randn(2, 3, 224, 224)
    if name == "vit":
        return ImageLogits(ViTForImageClassification(ViTConfig(num_labels=1000)).eval()), images
    widths = [64, 128, 256, 512]
    config = ResNetConfig(num_labels=1000, layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=widths)
    return ImageLogits(ResNetForImageClassification(config).eval()), images


@dataclass(frozen=True)
class Pair:
    """A dense original and its wide sparse model, both in standard operators.

    Attributes:
        dense: File of the original.
        wide: File of the wide model, zeros in place.
        flops_ratio: FLOPs of the non-zeros over the original's.
        parameters: `dense` and `sparse`.
    """

    dense: Path
    wide: Path
    flops_ratio: float
    parameters: Mapping[str, int]


def prepare(name: str, pattern: str, sparsity: float, folder: Path) -> Pair:
    """Transforms and exports a model, unless the folder has the files already.

    Args:
        name: As `build` takes it.
        pattern: What the masks look like.
        sparsity: Share of zeros.
        folder: Where the files are kept.
    """
    dense = folder / f"{name}-dense.onnx"
    wide = folder / f"{name}-wide-{pattern}-{sparsity:g}.onnx"
    facts = wide.with_suffix(".json")
    if not (dense.exists() and wide.exists() and facts.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        model, x = build(name)
        shapes = {_input(name): {0: torch.export.Dim("batch")}}
        traced = sparsify.trace(model, (x,), dynamic_shapes=shapes)
        if not dense.exists():
            sparsify.export(wrap(traced), dense, dense=True)
        sparse = sparsify.transform(traced, sparsity=sparsity, pattern=pattern).eval()
        sparsify.export(sparse, wide, dense=True)
        found = {
            "flops_ratio": sparse.sparsify.plan.flops.ratio,
            "parameters": {
                "dense": sum(p.numel() for p in model.parameters()),
                "sparse": sum(p.numel() for p in sparse.parameters()),
            },
        }
        facts.write_text(json.dumps(found) + "\n")
    return Pair(dense, wide, **json.loads(facts.read_text()))


def feeds(name: str, batch: int) -> dict[str, Array]:
    """Inputs of so many equal samples."""
    generator = torch.Generator().manual_seed(0)
    if name == "gpt2":
        x = torch.randint(50_000, (1, TOKENS), generator=generator)
    else:
        x = torch.randn((1, 3, 224, 224), generator=generator)
    return {_input(name): x.repeat(batch, *[1] * (x.dim() - 1)).numpy()}


def _input(name: str) -> str:
    return "input_ids" if name == "gpt2" else "pixel_values"


def measure(
    name: str, pattern: str, args: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and figures for every batch size and number of threads."""
    pair = prepare(name, pattern, args.sparsity, folder)
    for threads in args.threads:
        with tempfile.TemporaryDirectory() as made:
            lowered = Path(made) / "lowered.onnx"
            report = sparsify.lower(pair.wide, lowered, tune=args.tune, threads=threads, batches=args.batch)
            sessions = [Session(file, threads=threads) for file in (pair.dense, lowered, pair.wide)]
        layouts = [layer.layout or "dense" for layer in report.layers]
        for batch in args.batch:
            calls = [partial(session.run, feeds(name, batch)) for session in sessions]
            timings = interleave(calls, seconds=args.duration, warmup=2, minimum=5)
            dense, sparse, wide = (timing.median for timing in timings)
            yield (
                f"{name} {pattern} batch {batch} threads {threads}",
                {
                    "time_ratio": sparse / dense,
                    "dense_ms": 1e3 * dense,
                    "sparse_ms": 1e3 * sparse,
                    "wide_dense_ms": 1e3 * wide,
                    "spread": [timing.spread for timing in timings],
                    "flops_ratio": pair.flops_ratio,
                    "parameters": pair.parameters,
                    "layouts": {layout: layouts.count(layout) for layout in sorted(set(layouts))},
                },
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18,vit,gpt2")
    parser.add_argument("--pattern", default="unstructured,4x1")
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--batch", default="1")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds for each model and setting")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--models", type=Path, help="folder in which exported files are kept")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    args.batch = [int(size) for size in args.batch.split(",")]
    args.threads = [int(count) for count in args.threads.split(",")]
    file = None if args.output is None else args.output / "iso_time.json"
    results: dict[str, Any] = json.loads(file.read_text())["results"] if file and file.exists() else {}
    for name in args.model.split(","):
        for pattern in args.pattern.split(","):
            with tempfile.TemporaryDirectory() as folder:
                for label, figures in measure(name, pattern, args, args.models or Path(folder)):
                    results[label] = figures
                    print(f"{label}: {figures['time_ratio']:.2f} × the dense time", file=sys.stderr)
            text = json.dumps({"environment": environment(), "results": results}, indent=1)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
