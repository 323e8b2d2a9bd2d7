"""Time and peak memory of transforming a BERT of 110M parameters (random weights), trace included.

    python benchmarks/transform_bert.py [--sparsity 0.75] [--scope all]

Memory is the process's peak resident set, read before and after the transformation; the figures to compare it
with are the bytes of the given and of the resulting parameters. One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch
from transformers import BertConfig, BertModel

import sparsify


def peak_bytes() -> int:
    """Peak resident set of this process (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--scope", default="all")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    example = {"input_ids": torch.zeros(2, 128, dtype=torch.long)}
    before, start = peak_bytes(), time.perf_counter()
    sparse = sparsify.transform(model, (), example, sparsity=args.sparsity, scope=args.scope)
    seconds, after = time.perf_counter() - start, peak_bytes()
    given, made = parameter_bytes(model), parameter_bytes(sparse)
    allowed = given + 1.3 * made + 0.5e9
    report = {
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "parameters": {
            "dense": sum(p.numel() for p in model.parameters()),
            "stored": sum(p.numel() for p in sparse.parameters()),
        },
        "flops_ratio": sparse.sparsify.plan.flops.ratio,
        "bytes": {"given": given, "made": made, "peak_before": before, "peak": after},
        "peak_over_allowed": round((after - before + given) / allowed, 3),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
