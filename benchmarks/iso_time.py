"""Sparse models of the same FLOPs as a dense one, timed beside it: do equal FLOPs take equal time?

    python benchmarks/iso_time.py [--model resnet18,vit,gpt2] [--pattern unstructured,4x1] [--sparsity 0.75]
                                  [--batch 1] [--threads 2] [--duration 5] [--tune] [-o FOLDER]

ResNet-18 (224²), ViT-B/16 (224²), GPT-2 small (128 tokens), random weights: the dense original, and its
Sparse Wide model of the same FLOPs over the whole model, both exported, the sparse one lowered, both in ONNX
Runtime in this process, in alternating blocks. The time ratio is sparse over dense: 1 is iso-time. With them
stands the wide model's own dense export, to show what the zeros save. One JSON object on stdout, a line a
setting on stderr; with -o also a JSON file in which other settings of earlier runs stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsify
from sparsify.archive import wrap
from sparsify.runtime import Session
from sparsify.runtime.environment import environment
from sparsify.runtime.timing import interleave

TOKENS = 128


class ImageFeatures(nn.Module):
    """A transformers model of images, called with pixels alone, returning its last state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, 224, 224] → the last hidden state."""
        state: torch.Tensor = self.inner(pixel_values).last_hidden_state
        return state


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
    """The dense original with random weights, and inputs of two samples."""
    from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    if name == "gpt2":
        return Logits(GPT2LMHeadModel(GPT2Config()).eval()), torch.randint(50_000, (2, TOKENS))
    images = torch.randn(2, 3, 224, 224)
    if name == "vit":
        return ImageFeatures(ViTModel(ViTConfig(), add_pooling_layer=False).eval()), images
    config = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512])
    return ImageFeatures(ResNetModel(config).eval()), images


def measure(
    name: str, pattern: str, args: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and figures for every batch size and number of threads."""
    model, x = build(name)
    key = "input_ids" if name == "gpt2" else "pixel_values"
    shapes = {key: {0: torch.export.Dim("batch")}}
    traced = sparsify.trace(model, (x,), dynamic_shapes=shapes)
    sparse = sparsify.transform(traced, sparsity=args.sparsity, pattern=pattern).eval()
    plan = sparse.sparsify.plan
    sparsify.export(wrap(traced), folder / "dense.onnx", dense=True)
    sparsify.export(sparse, folder / "wide.onnx", dense=True)
    report = sparsify.lower(folder / "wide.onnx", folder / "sparse.onnx", tune=args.tune)
    layouts = [layer.layout or "dense" for layer in report.layers]
    shared = {
        "flops_ratio": plan.flops.ratio,
        "parameters": {"dense": sum(p.numel() for p in model.parameters())}
        | {"sparse": sum(p.numel() for p in sparse.parameters())},
        "layouts": {layout: layouts.count(layout) for layout in sorted(set(layouts))},
    }
    for threads in args.threads:
        sessions = [
            Session(folder / file, threads=threads) for file in ("dense.onnx", "sparse.onnx", "wide.onnx")
        ]
        for batch in args.batch:
            feeds = {sessions[0].raw.get_inputs()[0].name: x[:1].repeat(batch, *[1] * (x.dim() - 1)).numpy()}
            timings = interleave([partial(session.run, feeds) for session in sessions], seconds=args.duration)
            dense, lowered, wide = (timing.median for timing in timings)
            yield (
                f"{name} {pattern} batch {batch} threads {threads}",
                {
                    "time_ratio": lowered / dense,
                    "dense_ms": 1e3 * dense,
                    "sparse_ms": 1e3 * lowered,
                    "wide_dense_ms": 1e3 * wide,
                    "spread": [timing.spread for timing in timings],
                    **shared,
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
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    args.batch = [int(size) for size in args.batch.split(",")]
    args.threads = [int(count) for count in args.threads.split(",")]
    file = None if args.output is None else args.output / "iso_time.json"
    results: dict[str, Any] = json.loads(file.read_text())["results"] if file and file.exists() else {}
    for name in args.model.split(","):
        for pattern in args.pattern.split(","):
            with tempfile.TemporaryDirectory() as folder:
                for label, figures in measure(name, pattern, args, Path(folder)):
                    results[label] = figures
                    print(f"{label}: {figures['time_ratio']:.2f} × the dense time", file=sys.stderr)
            text = json.dumps({"environment": environment(), "results": results}, indent=1)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
